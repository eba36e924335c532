#!/usr/bin/env bash
# Checks and times umaserve on the GPU of this machine; made for a folder of bundle.sh. Every part
# has a log in $OUT (default: out/ beside this script) and the table of what passed comes last.
#
#     bash run.sh [PART...]
#
# Parts, in order; all of them without arguments:
#     selfcheck   every operation and a whole model against the CPU in f64, three number types
#     tests       the tests of the library that use the device
#     sanitizer   compute-sanitizer: memcheck, initcheck, racecheck, synccheck on a small network
#     bench       the table of times; atoms, edges, number type, ms, edges/s, share of peak, memory
#     largest     the largest silicon cell
#     nve         10,000 steps at constant energy in f32 and tf32
#     peer        fairchem on the same GPU, where $PEER/bench.sh (default ~/peer) runs it
#     profile     ncu on one evaluation (only when asked for)
# MODEL=FILE.pt takes a real checkpoint for selfcheck, bench and nve.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-$here/out}
PEER=${PEER:-$HOME/peer}
mkdir -p "$OUT"
cd "$here"
chmod +x umaserve gpu ./*-tests 2>/dev/null

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(selfcheck tests sanitizer bench largest nve peer)
model=${MODEL:-models/nano-1p2.pt}
of_model=(${MODEL:+--model "$MODEL"})
summary=()
failed=0

# run NAME SECONDS COMMAND...: into $OUT/NAME.log, with its end on the terminal.
run() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    tail -n "${LINES_SHOWN:-40}" "$OUT/$name.log" | sed "s/^/$name: /"
    if [ $code -eq 0 ]; then
        summary+=("ok      $name ($((SECONDS - begin)) s)")
    else
        summary+=("FAILED  $name (exit $code after $((SECONDS - begin)) s, see $name.log)")
        failed=1
    fi
    return $code
}

skip() { summary+=("absent  $1: $2"); }

{ nvidia-smi; cat commit; date -u; } >"$OUT/machine.log" 2>&1
grep -m 1 -oE 'NVIDIA [A-Z][^|]*' "$OUT/machine.log" | sed 's/ *$//'

for part in "${parts[@]}"; do
    case $part in
    selfcheck)
        for type in f32 tf32 f16; do
            LINES_SHOWN=60 run "selfcheck-$type" 300 ./umaserve selfcheck --device cuda \
                --precision $type --all --model "$model"
        done
        ;;
    tests)
        run tests 300 ./umaserve-tests --test-threads 1 backend::cuda
        ;;
    sanitizer)
        if ! command -v compute-sanitizer >/dev/null; then
            skip sanitizer "no compute-sanitizer on this machine"
            continue
        fi
        for tool in memcheck initcheck racecheck synccheck; do
            for type in tf32 f16 f32; do
                run "sanitizer-$tool-$type" 300 compute-sanitizer --tool $tool \
                    --error-exitcode 9 --launch-timeout 120 \
                    ./umaserve selfcheck --quick --device cuda --precision $type --model "$model"
            done
        done
        ;;
    bench)
        run bench 400 ./gpu --precision tf32,f16,f32 "${of_model[@]}" \
            --cases si-1000,cu-1000,cu-864,si-150,molecules-25,ethanol,molecules-64
        ;;
    largest)
        run largest 300 ./gpu --precision tf32,f16 --cases largest --runs 3 "${of_model[@]}"
        # As on a card of 80 GB.
        run largest-80 300 ./gpu --precision tf32 --cases largest --runs 3 --memory-mib 72000 \
            "${of_model[@]}"
        ;;
    nve)
        run nve 500 ./gpu --nve 10000 --precision f32,tf32 --model "$model"
        ;;
    peer)
        if [ ! -f "$PEER/bench.sh" ]; then
            skip peer "no $PEER/bench.sh"
            continue
        fi
        if [ ! -f "$PEER/uma-s-1p2.pt" ]; then
            PYTHONPATH=$PEER/site:$PEER/site/nvidia_cutlass_dsl/dsl_packages \
                run peer-checkpoint 300 python3 make_checkpoint.py uma-s-1p2 "$PEER/uma-s-1p2.pt"
        fi
        for mode in nitro multigpu; do
            run "peer-$mode-silicon" 300 bash "$PEER/bench.sh" "$PEER/uma-s-1p2.pt" --device cuda \
                --mode $mode --system silicon --atoms 150,1000 --runs 30
            run "peer-$mode-copper" 300 bash "$PEER/bench.sh" "$PEER/uma-s-1p2.pt" --device cuda \
                --mode $mode --system copper --atoms 864 --runs 30
        done
        ;;
    profile)
        run profile 500 ncu --clock-control none --set basic --launch-skip 400 \
            --launch-count 200 --csv --log-file "$OUT/profile.csv" \
            ./gpu --precision tf32 --cases si-1000 --runs 3
        ;;
    *)
        skip "$part" "unknown part"
        failed=1
        ;;
    esac
done

echo
printf '%s\n' "${summary[@]}" | tee "$OUT/summary.txt"
exit $failed
