#!/usr/bin/env bash
# Runs fuzz targets for about so many seconds, each from its corpus: fuzz/run.sh [SECONDS [TARGET...]]
#
# FUZZ_SEED=N makes the inputs of two runs the same ones, except where a target looks at a clock, and as
# many of them on every machine (0, the default: others every time, as many as the time allows).
#
# Needs neither a nightly compiler nor cargo-fuzz; with it, `cargo fuzz run --sanitizer none TARGET`
# does the same. An input that fails is left in fuzz/artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-10}
shift || true
if [ $# -eq 0 ]; then
    set -- client_messages rank_messages extended_xyz checkpoint
fi
case $seconds in
'' | *[!0-9]*)
    echo "usage: fuzz/run.sh [SECONDS [TARGET...]]" >&2
    exit 2
    ;;
esac

# The same versions as in the tests; cargo adds the fuzzing engine.
cp ../Cargo.lock Cargo.lock
# Beside the artifacts of the tests: the dependencies are the same.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../target}
RUSTC_WRAPPER=$PWD/rustc.sh cargo build --quiet "${@/#/--bin=}"

# What one core of 2026 does; a seed's inputs are counted, not timed.
declare -A inputs_per_second=(
    [client_messages]=80000 [rank_messages]=150000 [extended_xyz]=12000 [checkpoint]=2000
)

# Mutations take up what the code compares, addresses among it.
same_addresses=()
if [ "${FUZZ_SEED:-0}" != 0 ]; then
    if setarch -R true 2>/dev/null; then
        same_addresses=(setarch -R)
    else
        echo "fuzz: setarch -R cannot fix addresses here: the inputs differ from run to run" >&2
    fi
fi

failed=()
for target in "$@"; do
    begun=$SECONDS
    mkdir -p "artifacts/$target" "corpus/$target"
    found=$(mktemp -d)
    limit=(-max_total_time="$seconds")
    if [ "${FUZZ_SEED:-0}" != 0 ]; then
        limit=(-runs=$((seconds * ${inputs_per_second[$target]:?"for $target is not known"})) -reload=0)
    fi
    # New inputs go to the first directory; the kept corpus stays as it is.
    if ! "${same_addresses[@]}" "$CARGO_TARGET_DIR/debug/$target" "$found" "corpus/$target" \
        -seed="${FUZZ_SEED:-0}" "${limit[@]}" -timeout=60 -rss_limit_mb=2048 -max_len=131072 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 -verbosity=0 2>"$found.log"; then
        failed+=("$target")
        cat "$found.log" >&2
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$found.log")
    echo "fuzz: $target: ${runs:-?} inputs in $((SECONDS - begun)) s, $(find "$found" -type f | wc -l) of them new"
    rm -rf "$found" "$found.log"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "fuzz: failures in ${failed[*]}; the inputs are in fuzz/artifacts" >&2
    exit 1
fi
