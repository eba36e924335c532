#!/usr/bin/env bash
# Checks and times umaserve on the GPU of this machine; made for a folder of bundle.sh. Every part
# has a log in $OUT (default: out/ beside this script). What passed (summary.txt) and the table of
# docs/performance.md (table.md) are written anew after every part, so that a run that is cut off, or
# several runs one after the other, leave everything that was found; they are printed last.
#
#     bash run.sh [PART...]
#
# Parts, in order; all of them without arguments:
#     selfcheck   every operation and a whole model against the CPU in f64, three number types
#     bench       the table of times; atoms, edges, number type, ms, edges/s, share of peak, memory
#     memory      1,000 copper atoms in 2 GiB
#     nve         10,000 steps at constant energy in f32 and tf32
#     largest     the largest silicon cell
#     peer        fairchem on the same GPU and the same structures, where $PEER/site (default ~/peer) has it
#     tests       kernels, operations, golden files, random structures, the search for neighbours
#     sanitizer   compute-sanitizer: memcheck, racecheck, initcheck on a small network
#     profile     ncu on one evaluation
# Only when asked for: selfcheck-all (every layout), peer-all (also fairchem's compiled mode).
#
# BUDGET=SECONDS (default 460) is shared by all parts: what does not fit any more is left out and
# said so. MODEL=FILE.pt takes a real checkpoint for selfcheck, bench, memory, largest and nve.
# EMULATED=1 tries the script itself on a machine without a GPU: its times mean nothing.
#
# Exit status: 0 if all parts that could run passed, 1 otherwise, 2 for a part that there is not, 69
# without a GPU.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-$here/out}
PEER=${PEER:-$HOME/peer}
BUDGET=${BUDGET:-460}
mkdir -p "$OUT" || exit
OUT=$(cd "$OUT" && pwd)
cd "$here" || exit
if [ -z "${EMULATED:-}" ] && [ ! -e /dev/nvidiactl ] && ! nvidia-smi -L >/dev/null 2>&1; then
    echo "run.sh: no NVIDIA GPU on this machine (EMULATED=1 tries the script itself without one)" >&2
    exit 69
fi
if [ ! -x umaserve ] && ! tar xf programs.tar.xz; then
    echo "run.sh: the programs could not be unpacked from $here/programs.tar.xz (tar with xz is needed)" >&2
    exit 1
fi
# Where the toolkit usually is.
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

parts=("$@")
[ ${#parts[@]} -gt 0 ] ||
    parts=(selfcheck bench memory nve largest peer tests sanitizer profile)
for part in "${parts[@]}"; do
    case $part in
    selfcheck | selfcheck-all | bench | memory | nve | largest | peer | peer-all | tests | sanitizer | profile) ;;
    *)
        echo "run.sh: there is no part $part; the parts are listed at the top of this script" >&2
        exit 2
        ;;
    esac
done
model=${MODEL:-models/nano-1p2.pt}
of_model=(${MODEL:+--model "$MODEL"})
export UMASERVE_TEST_DATA=$here/data
if [ -n "${EMULATED:-}" ]; then
    emulated=(--emulated)
    check=(--emulated)
    bench=(--emulated --model "$model" --runs 1)
    cases=ethanol
    steps=5
    unset UMASERVE_TEST_GPU
else
    emulated=()
    check=(--device cuda)
    bench=("${of_model[@]}")
    cases=si-1000,cu-1000,cu-864,si-150,si-216,molecules-25,ethanol,molecules-64
    steps=10000
    export UMASERVE_TEST_GPU=1
fi
failed=0

# note NAME TEXT: what became of a part.
note() {
    echo "$2" >"$OUT/$1.status"
    tables
}

tables() {
    cat "$OUT"/*.status >"$OUT/summary.txt" 2>/dev/null
    python3 table.py "$OUT" >"$OUT/table.md"
}

# run NAME SECONDS COMMAND...: into $OUT/NAME.log, with its end on the terminal.
run() {
    local name=$1 limit=$2 begin=$SECONDS left=$((BUDGET - SECONDS)) code what
    shift 2
    if [ $left -lt 5 ]; then
        note "$name" "left out  $name: the $BUDGET s are over"
        failed=1
        return 1
    fi
    [ "$limit" -lt $left ] || limit=$left
    # Waited for beside it, so that a signal is answered at once.
    timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1 &
    child=$!
    wait $child
    code=$?
    tail -n "${LINES_SHOWN:-30}" "$OUT/$name.log" | sed "s/^/$name: /"
    case $code in
    0) what="ok        $name ($((SECONDS - begin)) s)" ;;
    124 | 137) what="CUT OFF   $name after $limit s, see $name.log" ;;
    *) what="FAILED    $name (exit $code after $((SECONDS - begin)) s, see $name.log)" ;;
    esac
    [ $code -eq 0 ] || failed=1
    note "$name" "$what"
    return $code
}

absent() { note "$1" "absent    $1: $2"; }

# The end, also of a run that is told to stop.
report() {
    trap - EXIT
    echo
    cat "$OUT/table.md"
    echo
    cat "$OUT/summary.txt"
    exit $failed
}
trap report EXIT
child=
trap 'failed=1; [ -z "$child" ] || kill "$child" 2>/dev/null; exit 1' TERM INT HUP
tables

{ nvidia-smi; cat commit; date -u; } >"$OUT/machine.log" 2>&1
grep -m 1 -oE 'NVIDIA [A-Z][^|]*' "$OUT/machine.log" | sed 's/ *$//'

# peer MODE CASE...: the structures of the bench, in one process.
peer() {
    local mode=$1
    shift
    PYTHONPATH=$PEER/site:$PEER/site/nvidia_cutlass_dsl/dsl_packages PYTHONUNBUFFERED=1 \
        run "peer-$mode" 300 python3 peer.py "$PEER/uma-s-1p2.pt" "${@/%/.xyz}" --device cuda --mode "$mode"
}

for part in "${parts[@]}"; do
    case $part in
    selfcheck | selfcheck-all)
        all=()
        [ "$part" = selfcheck ] || all=(--all)
        for type in f32 tf32 f16; do
            LINES_SHOWN=50 run "$part-$type" 120 ./umaserve selfcheck "${check[@]}" \
                --precision $type "${all[@]}" --model "$model"
        done
        ;;
    bench)
        for type in tf32 f16 f32; do
            run "bench-$type" 120 ./gpu --precision $type --cases $cases "${bench[@]}"
        done
        ;;
    memory)
        # How fast in 2 GiB, with weights and experts.
        if [ -n "${EMULATED:-}" ]; then
            absent memory "too large for the host"
        else
            run memory 60 ./gpu --precision tf32 --cases cu-1000 --memory-mib 1400 "${of_model[@]}"
        fi
        ;;
    largest)
        # As on a card of 80 GB.
        if [ -n "${EMULATED:-}" ]; then
            absent largest "too large for the host"
        else
            run largest 100 ./gpu --precision tf32 --cases largest --runs 2 --memory-mib 72000 \
                "${of_model[@]}"
        fi
        ;;
    nve)
        # With small models where none is named: a drift needs many steps. The demo model is trained, so
        # that the molecule holds together; silicon of random weights is work for the search.
        for case in ethanol si-128; do
            small=models/demo.pt
            [ $case = ethanol ] || small=models/nano-1p2.pt
            run "nve-$case" 120 ./gpu --nve $steps --nve-case $case --nve-timestep 0.5 \
                --precision f32,tf32 "${emulated[@]}" --model "${MODEL:-$small}"
        done
        ;;
    tests)
        run tests-kernels 60 tests/cuda_ops --test-threads 1
        run tests-operations 120 tests/ops --test-threads 1
        # What is told of failures is told by the kernels on the host.
        run tests-models 120 tests/cuda_uma --test-threads 1 --skip emulated::
        run tests-backend 120 tests/umaserve --test-threads 1 --skip on_the_host backend::cuda
        ;;
    sanitizer)
        if ! command -v compute-sanitizer >/dev/null; then
            absent sanitizer "no compute-sanitizer on this machine"
            continue
        fi
        for tool in memcheck racecheck initcheck; do
            run "sanitizer-$tool" 60 compute-sanitizer --tool $tool \
                --error-exitcode 9 --launch-timeout 60 \
                ./umaserve selfcheck --quick "${check[@]}" --precision tf32 --model "$model"
        done
        run sanitizer-memcheck-f16 60 compute-sanitizer --tool memcheck --error-exitcode 9 \
            --launch-timeout 60 \
            ./umaserve selfcheck --quick "${check[@]}" --precision f16 --model "$model"
        ;;
    peer | peer-all)
        if [ ! -d "$PEER/site/fairchem" ]; then
            absent "$part" "no $PEER/site/fairchem"
            continue
        fi
        structures=$OUT/cases
        run peer-cases 30 ./gpu --write-cases "$structures" \
            --cases si-1000,cu-1000,cu-864,si-150,ethanol,molecules-25 || continue
        if [ ! -f "$PEER/uma-s-1p2.pt" ]; then
            PYTHONPATH=$PEER/site:$PEER/site/nvidia_cutlass_dsl/dsl_packages \
                run peer-checkpoint 120 python3 make_checkpoint.py uma-s-1p2 "$PEER/uma-s-1p2.pt"
        fi
        modes=(nitro)
        [ "$part" = peer ] || modes=(nitro multigpu)
        for mode in "${modes[@]}"; do
            peer "$mode" "$structures"/{si-1000,cu-1000,si-150,ethanol,cu-864}
        done
        # Of different compositions: experts cannot be merged for all of them.
        peer general-tf32 "$structures"/molecules-25
        ;;
    profile)
        if ! command -v ncu >/dev/null; then
            absent profile "no ncu on this machine"
            continue
        fi
        run profile 120 ncu --clock-control none --set basic --launch-skip 300 \
            --launch-count 150 --csv --log-file "$OUT/profile.csv" \
            ./gpu --precision tf32 --cases si-1000 --runs 1 "${of_model[@]}"
        ;;
    esac
done
