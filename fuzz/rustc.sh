#!/usr/bin/env bash
# Compiles umaserve and the fuzz targets with the coverage that libFuzzer steers by, and everything
# else as it is; used by run.sh as RUSTC_WRAPPER. These options are those of cargo-fuzz, and stable.
case " $* " in
*" --crate-name umaserve "* | *" fuzz_targets/"*)
    exec "$@" --cfg fuzzing -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$@" ;;
esac
