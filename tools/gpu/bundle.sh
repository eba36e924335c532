#!/usr/bin/env bash
# Packs everything that checks and times umaserve on a GPU machine into one folder: programs that
# need nothing but libc and the CUDA driver (no MPI, no HDF5), a model, structures, and run.sh.
#
#     tools/gpu/bundle.sh [DIR]        DIR: target/gpu-bundle
#
# Over there: bash DIR/run.sh. No Rust and no network are needed there; the real model sizes come
# with random weights made on the spot, so that the folder stays below 60 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."
bundle=${1:-target/gpu-bundle}

export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
tools/nvcc.sh >/dev/null
# Kernels know the lines of their sources, for the checkers and the profiler.
export UMASERVE_KERNEL_LINES=1
# Without link-time optimisation: the time goes into the kernels.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_BENCH_LTO=off

rm -rf "$bundle"
mkdir -p "$bundle/models"

# Executables that cargo made, by target name.
collect() {
    python3 -c '
import json, shutil, sys
for line in sys.stdin:
    if line.startswith("{"):
        message = json.loads(line)
        if message.get("executable"):
            name = message["target"]["name"]
            test = message["profile"]["test"] and message["target"]["kind"] != ["bench"]
            shutil.copy(message["executable"], sys.argv[1] + "/" + name + ("-tests" if test else ""))
' "$bundle"
}
features=(--release --locked --no-default-features --message-format json-render-diagnostics)
cargo build "${features[@]}" --bin umaserve | collect
cargo bench --locked --no-default-features --message-format json-render-diagnostics \
    --no-run --bench gpu | collect
cargo test "${features[@]}" --no-run --lib | collect

cp models/*.pt "$bundle/models/"
cp tools/gpu/run.sh tools/gpu/table.py tools/reference/make_checkpoint.py "$bundle/"
cp target/kernels/table.txt "$bundle/kernels.txt"
git rev-parse HEAD >"$bundle/commit" 2>/dev/null || echo unknown >"$bundle/commit"
for program in "$bundle"/umaserve "$bundle"/gpu "$bundle"/*-tests; do strip -g "$program"; done
du -sh "$bundle"
