#!/usr/bin/env bash
#SBATCH --job-name=umaserve
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#
# Serves simulations from a Slurm job, watches over the ranks, and hands the job back to the queue
# with everything on disk when its time is over. `slurm/serve.sh --help` explains.
#
# The lines above are defaults: options of sbatch win over them.
set -uo pipefail

usage() {
    cat <<'HELP'
Serve molecular simulations from a Slurm job.

    sbatch [SBATCH OPTIONS] slurm/serve.sh [OPTIONS] [OPTIONS OF `umaserve serve`]

    sbatch --time=8:00:00 --gpus-per-node=4 --cpus-per-task=8 slurm/serve.sh --model uma-s-1p2p1.pt
    sbatch --time=8:00:00 --nodes=2 --gpus-per-node=4 --cpus-per-task=8 slurm/serve.sh
    sbatch --time=8:00:00 --nodes=2 --ntasks-per-node=2 --cpus-per-task=16 slurm/serve.sh   (CPUs only)

Rank 0 takes the viewers; every other rank computes, one for each GPU of a node, or without GPUs one
for each task that --ntasks-per-node asks for (1 if it does not). Rank 0 shares the first node with
its workers; it needs little. --cpus-per-task is the number of threads of each rank.

The job's output tells how to reach the server; `umaserve connect DIR/connection.json` tells it again.

Options (each is also read from the environment and from the configuration file by the name in
brackets; the command line wins over the environment, the environment over the file):
  --dir DIR          recordings, the state of all sessions, and connection.json; a job that is started
                     again with the same directory goes on where it was   [UMASERVE_DIR]
                     default: umaserve-JOBID where sbatch was called; without Slurm umaserve-run
  --workers N        computing ranks on each node; 0: one process does all   [UMASERVE_WORKERS]
  --bind HOST:PORT   where to listen; port 0: a free one   [UMASERVE_BIND]
                     default: 127.0.0.1:0, which is reached through `ssh -L`; --bind-interface and
                     --unix-socket of `umaserve serve` take its place
  --launcher NAME    srun, mpirun, none (one process) or auto   [UMASERVE_LAUNCHER]
                     auto: srun with PMIx; mpirun where Slurm has no PMIx or its PMIx is not that of
                     umaserve's MPI
  --program FILE     the umaserve to run   [UMASERVE_PROGRAM]
                     default: target/release/umaserve beside this script, else the one in PATH
  --image FILE       run the umaserve of this Apptainer image instead (slurm/umaserve.def)
                     [UMASERVE_IMAGE]
  --restarts N       how often in a row the ranks are started again after a fault   [UMASERVE_RESTARTS_MAX]
                     default: 5, after 1, 2, 4, 8, 16 s; ten minutes of work wipe the slate
  --job-config FILE  lines NAME=VALUE (no quotes, # begins a comment); names of other environment
                     variables are fine too: UMA_MODEL, RUST_LOG   [UMASERVE_JOB_CONFIG]
                     default: umaserve-job.conf where sbatch was called, if there is one
  --setup FILE       shell commands to run first, such as `module load openmpi`   [UMASERVE_SETUP]
  --dry-run          say what would be started, and do not
  --help             this text
  everything else    goes to `umaserve serve`, see `umaserve serve --help`   [UMASERVE_ARGS, split at
                     blanks]

Signals: two minutes before the time limit (--signal=B:USR1@120) and when the job is preempted the
server stops admitting, finishes the step, writes everything and the job is queued again under the same
number; when it starts again the sessions go on by themselves. `scancel --batch --signal=USR1 JOBID`
does the same at once. `scancel JOBID` writes everything too, and the job ends.

Faults: when a rank dies or hangs, all ranks are started again inside the job, and sessions go on from
their checkpoints. A server that cannot start at all (a wrong option, an unreadable checkpoint) is not
started again: the job ends with its message.

Exit status: 0 after a regular end, 75 when the state is on disk but the job could not be queued again
(submit it again with the same --dir), else that of the server.

Without Slurm the script does the same on one machine: slurm/serve.sh --workers 2 --dir DIR.
HELP
}

# Exit status of the server: start me again and I go on (EX_TEMPFAIL).
readonly AGAIN=75
# Exit status of the server: the ranks do not find each other (EX_UNAVAILABLE).
readonly NOT_TOGETHER=69
# Seconds of work after which earlier faults are forgotten.
readonly GOOD_WHILE=600

say() { printf 'serve.sh: %(%FT%TZ)T %s\n' -1 "$*" >&2; }
refuse() {
    say "$*"
    exit 2
}

export TZ=UTC0

# --- settings --------------------------------------------------------------------------------------

option_job_config='' option_dir='' option_workers='' option_bind='' option_launcher=''
option_program='' option_image='' option_restarts='' option_setup='' dry_run=''
serve_options=()
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h)
        usage
        exit 0
        ;;
    --dry-run) dry_run=yes ;;
    --dir | --workers | --bind | --launcher | --program | --image | --restarts | --job-config | --setup)
        [ $# -gt 1 ] || refuse "$1 needs a value; --help explains"
        name=${1#--}
        printf -v "option_${name//-/_}" %s "$2"
        shift
        ;;
    --dir=* | --workers=* | --bind=* | --launcher=* | --program=* | --image=* | --restarts=* | --job-config=* | --setup=*)
        name=${1%%=*} name=${name#--}
        printf -v "option_${name//-/_}" %s "${1#*=}"
        ;;
    --)
        shift
        serve_options+=("$@")
        break
        ;;
    *) serve_options+=("$1") ;;
    esac
    shift
done

here=${SLURM_SUBMIT_DIR:-$PWD}
job=${SLURM_JOB_ID:-}

config=${option_job_config:-${UMASERVE_JOB_CONFIG:-}}
if [ -n "$config" ]; then
    [ -r "$config" ] || refuse "--job-config $config: cannot be read"
elif [ -r "$here/umaserve-job.conf" ]; then
    config=$here/umaserve-job.conf
fi
if [ -n "$config" ]; then
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line =~ ^[[:space:]]*([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] ||
            refuse "$config, line $number: not NAME=VALUE: $line"
        name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        value=${value%"${value##*[![:space:]]}"}
        [ -n "${!name:-}" ] || export "$name=$value"
    done <"$config"
fi

setup=${option_setup:-${UMASERVE_SETUP:-}}
if [ -n "$setup" ]; then
    [ -r "$setup" ] || refuse "--setup $setup: cannot be read"
    set +u # such files are not written for it
    # shellcheck disable=SC1090 # the user's file
    . "$setup" || refuse "--setup $setup: has failed"
    set -u
fi

if [ -n "$job" ]; then
    dir=$here/umaserve-$job
else
    dir=$here/umaserve-run
fi
dir=${option_dir:-${UMASERVE_DIR:-$dir}}
workers=${option_workers:-${UMASERVE_WORKERS:-}}
bind=${option_bind:-${UMASERVE_BIND:-}}
launcher=${option_launcher:-${UMASERVE_LAUNCHER:-auto}}
program=${option_program:-${UMASERVE_PROGRAM:-}}
image=${option_image:-${UMASERVE_IMAGE:-}}
most_restarts=${option_restarts:-${UMASERVE_RESTARTS_MAX:-5}}
read -ra more_options <<<"${UMASERVE_ARGS:-}"

[[ $most_restarts =~ ^[0-9]{1,6}$ ]] || refuse "--restarts $most_restarts: not a number from 0 to 999999"
[[ $workers =~ ^([0-9]{1,4})?$ ]] || refuse "--workers $workers: not a number from 0 to 9999"
case $launcher in
auto | srun | mpirun | none) ;;
*) refuse "--launcher $launcher: may be auto, srun, mpirun or none" ;;
esac

# Slurm runs a copy of this script; the original's place tells where the program was built.
original() {
    [ -n "$job" ] || {
        printf '%s\n' "${BASH_SOURCE[0]}"
        return
    }
    scontrol show job "$job" 2>/dev/null | sed -n 's/^ *Command=\(.*serve\.sh\).*/\1/p' | head -n 1
}

if [ -n "$image" ]; then
    [ -r "$image" ] || refuse "--image $image: cannot be read"
    container=$(command -v apptainer || command -v singularity) ||
        refuse "--image: there is no apptainer in PATH"
elif [ -z "$program" ]; then
    beside=$(cd -- "$(dirname -- "$(original)")/.." 2>/dev/null && pwd)/target/release/umaserve
    if [ -x "$beside" ]; then
        program=$beside
    else
        program=$(command -v umaserve) ||
            refuse "there is no $beside and no umaserve in PATH; build it (make build) or name it with --program"
    fi
fi
[ -n "$image" ] || [ -x "$program" ] || refuse "--program $program: is not a program"

# --- ranks -----------------------------------------------------------------------------------------

# GPUs of this node that belong to the job.
gpus() {
    local list=${SLURM_JOB_GPUS:-${SLURM_STEP_GPUS:-}}
    if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
        echo "$SLURM_GPUS_ON_NODE"
    elif [ -n "$list" ]; then
        tr ',' '\n' <<<"$list" | wc -l
    else
        echo 0
    fi
}

on_gpus=$(gpus)
if [ -z "$workers" ]; then
    if [ "$on_gpus" -gt 0 ]; then
        workers=$on_gpus
    else
        workers=${SLURM_NTASKS_PER_NODE:-1}
    fi
fi

if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
else
    nodes=(localhost)
fi
[ ${#nodes[@]} -gt 0 ] || refuse "the nodes of the job cannot be listed (scontrol show hostnames)"
ranks=$((1 + workers * ${#nodes[@]}))

if [ "$workers" -eq 0 ]; then
    [ ${#nodes[@]} -eq 1 ] || refuse "--workers 0 is one process, and the job has ${#nodes[@]} nodes"
    case $launcher in
    auto | none) launcher=none ;;
    *) refuse "--workers 0 is one process, without --launcher $launcher" ;;
    esac
elif [ "$launcher" = none ]; then
    refuse "--launcher none is one process: it needs --workers 0"
fi
automatic=''
if [ "$launcher" = auto ]; then
    automatic=yes
    if [ -n "$job" ] && srun --mpi=list 2>&1 | grep -qw pmix; then
        launcher=srun
    else
        launcher=mpirun
    fi
fi
[ "$launcher" != srun ] || [ -n "$job" ] || refuse "--launcher srun: this is not a Slurm job"
[ "$launcher" = none ] || command -v "$launcher" >/dev/null || refuse "there is no $launcher in PATH"

mkdir -p -- "$dir" || refuse "--dir $dir: cannot be made"
dir=$(cd -- "$dir" && pwd)
connection=$dir/connection.json

listen=()
if [ -n "$bind" ]; then
    listen=(--bind "$bind")
elif [ -z "${UMASERVE_BIND_INTERFACE:-}${UMASERVE_UNIX_SOCKET:-}" ] &&
    [[ " ${more_options[*]-} ${serve_options[*]-} " != *" --bind-interface"* ]] &&
    [[ " ${more_options[*]-} ${serve_options[*]-} " != *" --unix-socket"* ]]; then
    listen=(--bind 127.0.0.1:0) # jobs share nodes: no port is sure to be free
fi
if [ -n "$image" ]; then
    run=("$container" exec --bind "$dir" --bind "$here")
    [ "$on_gpus" -eq 0 ] || run+=(--nv) # the driver of the host
    run+=("$image" umaserve)
else
    run=("$program")
fi
serve=("${run[@]}" serve --resume "$dir" --record "$dir" --connection-file "$connection"
    ${listen[@]+"${listen[@]}"} ${more_options[@]+"${more_options[@]}"} ${serve_options[@]+"${serve_options[@]}"})

# The front and its workers on the first node, workers on the others: one line a rank.
write_hosts() {
    local node rank
    printf '%s\n' "${nodes[0]}"
    for node in "${nodes[@]}"; do
        for ((rank = 0; rank < workers; rank++)); do printf '%s\n' "$node"; done
    done
}

# Sets `command` to what starts the ranks.
compose() {
    case $launcher in
    none) command=("${serve[@]}") ;;
    srun)
        # Arbitrary distribution: the first node has one rank more. More ranks than the job has
        # tasks, so the cores are shared (--overcommit) and nothing is pinned.
        command=(srun --mpi=pmix --nodes="${#nodes[@]}" --ntasks="$ranks" --distribution=arbitrary
            --overcommit --cpu-bind=none --mem=0 --kill-on-bad-exit=1 --unbuffered)
        # Since Slurm 22.05 srun does not take it from the job.
        [ -z "${SLURM_CPUS_PER_TASK:-}" ] || command+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
        # Every rank sees all GPUs of its node and takes the one of its place there.
        [ "$on_gpus" -eq 0 ] || command+=(--gpu-bind=none)
        command=(env -u SLURM_GPUS_PER_TASK -u SLURM_NTASKS_PER_GPU -u SLURM_GPU_BIND
            -u SLURM_NTASKS_PER_NODE -u SLURM_TRES_PER_TASK SLURM_HOSTFILE="$dir/hosts"
            "${command[@]}" "${serve[@]}")
        ;;
    mpirun)
        command=(mpirun -n "$ranks")
        if [ ${#nodes[@]} -gt 1 ]; then
            mpirun --version 2>&1 | grep -qiE 'open.?mpi|openrte|prte' ||
                refuse "several nodes with an mpirun that is not Open MPI's; use --launcher srun"
            local list="${nodes[0]}:$((workers + 1))" node
            for node in "${nodes[@]:1}"; do list+=",$node:$workers"; done
            command+=(--host "$list")
            local name
            for name in UMASERVE_RANKS UMASERVE_RESTARTS SLURM_CPUS_PER_TASK ${!UMA_@} RUST_LOG MLIPVIEW_FORCE_CPU; do
                [ -z "${!name+set}" ] || command+=(-x "$name")
            done
        fi
        command+=("${serve[@]}")
        ;;
    esac
}

# Open MPI 4 and 5 under mpirun: ranks may share cores and are not pinned, and have three seconds
# between TERM and KILL. mpirun waits them out after every fault, so more would delay the restart.
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
export OMPI_MCA_odls_base_sigkill_timeout=3 PRTE_MCA_odls_base_sigkill_timeout=3
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Threads come from --cpus-per-task; libraries below must not start their own.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

describe() {
    say "${job:+job $job (start $((${SLURM_RESTART_COUNT:-0} + 1))), }${#nodes[@]} node(s) ${nodes[*]}:" \
        "rank 0 serves, $workers worker(s) on each node, $ranks ranks in all," \
        "${SLURM_CPUS_PER_TASK:-all} CPUs each, $on_gpus GPU(s) on a node; started by $launcher"
    say "state and recordings in $dir"
}

compose
if [ -n "$dry_run" ]; then
    describe
    printf '%q ' "${command[@]}"
    echo
    write_hosts
    exit 0
fi
write_hosts >"$dir/hosts" || refuse "--dir $dir: cannot be written"

# --- watching over the ranks -----------------------------------------------------------------------

child='' drain='' interrupted=''
# Both srun and mpirun pass USR1 on to the ranks; TERM would make them kill the ranks.
drain_for() {
    interrupted=yes
    [ "$drain" = stop ] || drain=$1
    if [ -n "$child" ]; then
        say "$2: the server writes everything and ends"
        kill -USR1 "$child" 2>/dev/null
    fi
}
trap 'drain_for again USR1' USR1
trap 'drain_for again TERM' TERM
trap 'drain_for stop INT' INT

# Waits for a child although signals interrupt waits; sets `status`.
await() {
    while :; do
        interrupted=''
        wait "$1"
        status=$?
        [ -n "$interrupted" ] || return 0
    done
}

pause() {
    sleep "$1" &
    local sleeper=$!
    wait "$sleeper" # a signal ends it
    kill "$sleeper" 2>/dev/null
}

# Whether Slurm still means this job to run: one that is cancelled must not come back.
wanted() {
    local state
    state=$(scontrol show job --oneliner "$job" 2>/dev/null | grep -o 'JobState=[A-Z_]*')
    [ "${state#*=}" = RUNNING ]
}

# Everything is on disk: back to the queue.
leave_for_later() {
    if [ "$drain" = stop ]; then
        exit 0
    fi
    if [ -z "$job" ]; then
        say "ended; started again with --dir $dir it goes on"
        exit "$AGAIN"
    fi
    if ! wanted; then
        say "Slurm is ending the job (cancelled or preempted); whatever runs with --dir $dir next goes on"
        exit 0
    fi
    say "back to the queue"
    trap '' TERM USR1
    scontrol requeue "$job" && exit 0
    say "the job cannot be queued again (was it submitted with --no-requeue?);" \
        "submit another one with --dir $dir and it goes on"
    exit "$AGAIN"
}

# Outside Slurm a Ctrl-C is for this script only, which asks the server to end.
detach=()
if [ -z "$job" ] && command -v setsid >/dev/null; then
    detach=(setsid)
fi

describe
# A job that Slurm has started again has served before.
served=''
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || served=yes
faults=0 restarts=0
while :; do
    [ -z "$drain" ] || leave_for_later
    export UMASERVE_RANKS=$ranks UMASERVE_RESTARTS=$restarts
    compose
    : >"$dir/.started"
    began=$SECONDS
    ${detach[@]+"${detach[@]}"} "${command[@]}" &
    child=$!
    # A signal that came in between has not found the child.
    [ -z "$drain" ] || kill -USR1 "$child"
    await "$child"
    child=''
    [ "$connection" -nt "$dir/.started" ] && served=yes

    if [ -n "$drain" ]; then
        case $status in
        0 | "$AGAIN") ;;
        *) say "the server ended with status $status while it wrote; its checkpoints are on disk" ;;
        esac
        leave_for_later
    fi
    [ "$status" -ne 0 ] || exit 0
    # When a rank dies, srun and mpirun send TERM to the others, and rank 0 ends as if asked to
    # ($AGAIN). When Slurm ends the job it tells the ranks before it tells this script.
    if [ -n "$job" ] && ! wanted; then
        leave_for_later
    fi

    if [ "$status" -eq "$NOT_TOGETHER" ] && [ -n "$automatic" ] && [ "$launcher" = srun ] &&
        command -v mpirun >/dev/null; then
        say "srun's PMIx does not fit the MPI of umaserve; trying mpirun"
        launcher=mpirun
        continue
    fi
    if [ "$status" -eq 2 ] || [ "$status" -eq "$NOT_TOGETHER" ] || [ -z "$served" ]; then
        say "the server could not start (status $status)"
        exit "$status"
    fi
    [ $((SECONDS - began)) -lt $GOOD_WHILE ] || faults=0
    if [ "$faults" -ge "$most_restarts" ]; then
        say "the server ended with status $status, and $faults restart(s) in a row have not helped"
        exit "$status"
    fi
    delay=$((1 << (faults < 5 ? faults : 5)))
    faults=$((faults + 1)) restarts=$((restarts + 1))
    say "the server ended with status $status; restart $faults of $most_restarts in a row, in $delay s"
    pause "$delay"
done
