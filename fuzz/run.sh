#!/usr/bin/env bash
# Runs fuzz targets for a bounded time, each from its corpus: fuzz/run.sh [SECONDS [TARGET...]]
#
# FUZZ_SEED=N makes the inputs of two runs the same ones (0, the default: others every time).
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

failed=()
for target in "$@"; do
    mkdir -p "artifacts/$target" "corpus/$target"
    found=$(mktemp -d)
    # New inputs go to the first directory; the kept corpus stays as it is.
    if ! "$CARGO_TARGET_DIR/debug/$target" "$found" "corpus/$target" \
        -seed="${FUZZ_SEED:-0}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=131072 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 -verbosity=0 2>"$found.log"; then
        failed+=("$target")
        cat "$found.log" >&2
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$found.log")
    echo "fuzz: $target: ${runs:-?} inputs in at most $seconds s, $(find "$found" -type f | wc -l) of them new"
    rm -rf "$found" "$found.log"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "fuzz: failures in ${failed[*]}; the inputs are in fuzz/artifacts" >&2
    exit 1
fi
