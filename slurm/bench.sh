#!/usr/bin/env bash
#SBATCH --job-name=umaserve-bench
#SBATCH --output=%x-%j.out
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --time=1:00:00
#
# Runs the benches as a job. `slurm/bench.sh --help` explains.
set -euo pipefail

usage() {
    cat <<'HELP'
Run umaserve's benches as a Slurm job, on a node of its own.

    sbatch [SBATCH OPTIONS] slurm/bench.sh [OPTIONS] [BENCH...] [-- ARGUMENTS OF THE BENCH]

    sbatch slurm/bench.sh                                  (all benches)
    sbatch --gpus=1 slurm/bench.sh step -- uma-s-1p2p1.pt
    sbatch slurm/bench.sh load -- --clients 64 --seconds 60

The tables are in the job's output, below lines that say on what they were measured. Call sbatch in the
repository, and build there before if compute nodes have no network: cargo bench --no-run.

  --repository DIR   where the sources are [UMASERVE_REPOSITORY]; default: where sbatch was called
  --setup FILE       shell commands to run first, such as `module load openmpi hdf5` [UMASERVE_SETUP]
  --list             names of the benches
  --help             this text
HELP
}

refuse() {
    printf 'bench.sh: %s\n' "$*" >&2
    exit 2
}

repository=${UMASERVE_REPOSITORY:-${SLURM_SUBMIT_DIR:-$(cd -- "$(dirname -- "$0")/.." && pwd)}}
setup=${UMASERVE_SETUP:-}
benches=() arguments=() list=''
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h)
        usage
        exit 0
        ;;
    --list) list=yes ;;
    --repository | --setup)
        [ $# -gt 1 ] || refuse "$1 needs a value; --help explains"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
    --)
        shift
        arguments=("$@")
        break
        ;;
    -*) refuse "$1: no such option; arguments of a bench come after --" ;;
    *) benches+=("$1") ;;
    esac
    shift
done

[ -r "$repository/Cargo.toml" ] || refuse "--repository $repository: no Cargo.toml there"
cd -- "$repository"
known=$(sed -n '/^\[\[bench\]\]/,/^$/ s/^name = "\(.*\)"/\1/p' Cargo.toml | sort)
if [ -n "$list" ]; then
    printf '%s\n' "$known"
    exit 0
fi
[ ${#benches[@]} -gt 0 ] || mapfile -t benches <<<"$known"
for bench in "${benches[@]}"; do
    grep -qxF -- "$bench" <<<"$known" || refuse "$bench: no such bench; there are ${known//$'\n'/, }"
done
if [ ${#arguments[@]} -gt 0 ] && [ ${#benches[@]} -ne 1 ]; then
    refuse "arguments after -- are for one bench; name it"
fi

if [ -n "$setup" ]; then
    [ -r "$setup" ] || refuse "--setup $setup: cannot be read"
    set +u
    # shellcheck disable=SC1090 # the user's file
    . "$setup"
    set -u
fi
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
command -v cargo >/dev/null || refuse "there is no cargo in PATH (tools/setup.sh installs it)"

# Compiling must not be measured.
cargo bench --locked --no-run

echo "date      $(date -u +%FT%TZ)"
echo "commit    $(git describe --always --dirty 2>/dev/null || echo unknown)"
echo "host      $(hostname)${SLURM_JOB_ID:+, job $SLURM_JOB_ID}"
echo "CPU       $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $(nproc) usable"
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | sed 's/^/GPU       /' || true
fi
failed=()
for bench in "${benches[@]}"; do
    printf '\n=== %s %s\n' "$bench" "${arguments[*]-}"
    cargo bench --locked --quiet --bench "$bench" -- ${arguments[@]+"${arguments[@]}"} || failed+=("$bench")
done
[ ${#failed[@]} -eq 0 ] || {
    echo "bench.sh: failed: ${failed[*]}" >&2
    exit 1
}
