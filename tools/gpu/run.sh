#!/usr/bin/env bash
# Checks and times umaserve on the GPU of this machine; made for a folder of bundle.sh. Every part
# has a log in $OUT (default: out/ beside this script); what passed (summary.txt) and the table of
# docs/performance.md (table.md) come last.
#
#     bash run.sh [PART...]
#
# Parts, in order; all of them without arguments:
#     selfcheck   every operation and a whole model against the CPU in f64, three number types
#     tests       the tests of the library that use the device
#     sanitizer   compute-sanitizer: memcheck, racecheck, initcheck on a small network
#     bench       the table of times; atoms, edges, number type, ms, edges/s, share of peak, memory
#     peer        fairchem on the same GPU, where $PEER/bench.sh (default ~/peer) runs it
#     nve         10,000 steps at constant energy in f32 and tf32
#     largest     the largest silicon cell
#     profile     ncu on one evaluation
# Only when asked for: selfcheck-all (every layout), peer-all (also fairchem's compiled mode).
#
# BUDGET=SECONDS (default 460) is shared by all parts: what does not fit any more is left out and
# said so. MODEL=FILE.pt takes a real checkpoint for selfcheck, bench and nve. EMULATED=1 tries the
# script itself on a machine without a GPU: its times mean nothing.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-$here/out}
PEER=${PEER:-$HOME/peer}
BUDGET=${BUDGET:-460}
mkdir -p "$OUT"
cd "$here" || exit
if [ -z "${EMULATED:-}" ] && [ ! -e /dev/nvidiactl ] && ! nvidia-smi -L >/dev/null 2>&1; then
    echo "run.sh: no NVIDIA GPU on this machine (EMULATED=1 tries the script itself without one)" >&2
    exit 69
fi
chmod +x umaserve gpu ./*-tests 2>/dev/null

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(selfcheck tests sanitizer bench peer nve largest profile)
model=${MODEL:-models/nano-1p2.pt}
of_model=(${MODEL:+--model "$MODEL"})
if [ -n "${EMULATED:-}" ]; then
    check=(--emulated)
    bench=(--emulated --model "$model" --runs 1)
    cases=ethanol
    nve=()
    steps=20
else
    check=(--device cuda)
    bench=("${of_model[@]}")
    cases=si-1000,cu-1000,cu-864,si-150,molecules-25,ethanol,molecules-64
    nve=()
    [ -n "${MODEL:-}" ] || nve=(--model "$model")
    steps=10000
fi
summary=()
failed=0

# run NAME SECONDS COMMAND...: into $OUT/NAME.log, with its end on the terminal.
run() {
    local name=$1 limit=$2 begin=$SECONDS left=$((BUDGET - SECONDS)) code
    shift 2
    if [ $left -lt 5 ]; then
        summary+=("left out  $name: the $BUDGET s are over")
        failed=1
        return 1
    fi
    [ "$limit" -lt $left ] || limit=$left
    timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    tail -n "${LINES_SHOWN:-30}" "$OUT/$name.log" | sed "s/^/$name: /"
    if [ $code -eq 0 ]; then
        summary+=("ok        $name ($((SECONDS - begin)) s)")
    else
        summary+=("FAILED    $name (exit $code after $((SECONDS - begin)) s, see $name.log)")
        failed=1
    fi
    return $code
}

skip() { summary+=("absent    $1: $2"); }

{ nvidia-smi; cat commit; date -u; } >"$OUT/machine.log" 2>&1
grep -m 1 -oE 'NVIDIA [A-Z][^|]*' "$OUT/machine.log" | sed 's/ *$//'

# peer MODE SYSTEM ATOMS
peer() {
    run "peer-$1-$2" 150 bash "$PEER/bench.sh" "$PEER/uma-s-1p2.pt" --device cuda --mode "$1" \
        --system "$2" --atoms "$3" --runs 30
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
    tests)
        run tests 120 ./umaserve-tests --test-threads 1 backend::cuda
        ;;
    sanitizer)
        if ! command -v compute-sanitizer >/dev/null; then
            skip sanitizer "no compute-sanitizer on this machine"
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
    bench)
        for type in tf32 f16 f32; do
            run "bench-$type" 120 ./gpu --precision $type --cases $cases "${bench[@]}"
        done
        # How fast in 2 GiB, with weights and experts.
        [ -n "${EMULATED:-}" ] || run memory 60 ./gpu --precision tf32 --cases cu-1000 \
            --memory-mib 1400 "${of_model[@]}"
        ;;
    largest)
        # As on a card of 80 GB.
        [ -n "${EMULATED:-}" ] || run largest 60 ./gpu --precision tf32 --cases largest --runs 2 \
            --memory-mib 72000 "${of_model[@]}"
        ;;
    nve)
        # With the small model where none is named: a drift needs many steps.
        run nve 90 ./gpu --nve $steps --precision f32,tf32 "${bench[@]}" "${nve[@]}"
        ;;
    peer | peer-all)
        if [ ! -f "$PEER/bench.sh" ]; then
            skip "$part" "no $PEER/bench.sh"
            continue
        fi
        if [ ! -f "$PEER/uma-s-1p2.pt" ]; then
            PYTHONPATH=$PEER/site:$PEER/site/nvidia_cutlass_dsl/dsl_packages \
                run peer-checkpoint 120 python3 make_checkpoint.py uma-s-1p2 "$PEER/uma-s-1p2.pt"
        fi
        modes=(nitro)
        [ "$part" = peer ] || modes=(nitro multigpu)
        for mode in "${modes[@]}"; do
            peer "$mode" silicon 1000,150
            peer "$mode" copper 864
        done
        ;;
    profile)
        if ! command -v ncu >/dev/null; then
            skip profile "no ncu on this machine"
            continue
        fi
        run profile 120 ncu --clock-control none --set basic --launch-skip 300 \
            --launch-count 150 --csv --log-file "$OUT/profile.csv" \
            ./gpu --precision tf32 --cases si-1000 --runs 1 "${of_model[@]}"
        ;;
    *)
        skip "$part" "unknown part"
        failed=1
        ;;
    esac
done

echo
python3 table.py "$OUT" >"$OUT/table.md" && cat "$OUT/table.md"
echo
printf '%s\n' "${summary[@]}" | tee "$OUT/summary.txt"
exit $failed
