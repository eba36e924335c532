#!/usr/bin/env bash
# Packs everything that checks and times umaserve on a GPU machine into one folder: programs that
# need nothing but libc, libstdc++ and the CUDA driver (no MPI, no HDF5), models, golden files, and run.sh.
#
#     tools/gpu/bundle.sh [DIR]        DIR: target/gpu-bundle
#
# Over there: bash DIR/run.sh. No Rust and no network are needed there; the real model sizes come
# with random weights made on the spot, so that the folder has about 25 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
bundle=${1:-$target/gpu-bundle}

export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
tools/nvcc.sh >/dev/null
# Kernels know the lines of their sources, for the checkers and the profiler. Empty: those of other builds
# serve, and need not be compiled again.
export UMASERVE_KERNEL_LINES=${UMASERVE_KERNEL_LINES-1}
# Without link-time optimisation: the time goes into the kernels.
export CARGO_PROFILE_RELEASE_LTO=off

rm -rf "$bundle"
mkdir -p "$bundle/models" "$bundle/data" "$bundle/tests"

# One build for all of them; the integration tests bring the program. Kernels for the host too, so that
# run.sh can be tried without a GPU.
cargo test --release --locked --no-default-features --features host-kernels --no-run \
    --lib --test cuda_ops --test cuda_uma --test ops --bench gpu \
    --message-format json-render-diagnostics |
    python3 -c '
import json, shutil, sys
for line in sys.stdin:
    message = json.loads(line) if line.startswith("{") else {}
    if not message.get("executable"):
        continue
    (kind, *_), name = message["target"]["kind"], message["target"]["name"]
    folder = {"bin": "", "bench": "", "test": "tests/", "lib": "tests/"}[kind]
    shutil.copy(message["executable"], f"{sys.argv[1]}/{folder}{name}")
' "$bundle"
# They share most of what is in them, which only shows in a large window.
programs=(umaserve gpu tests/umaserve tests/cuda_ops tests/cuda_uma tests/ops)
(
    cd "$bundle"
    strip "${programs[@]}"
    XZ_OPT=--lzma2=preset=6,dict=64MiB tar cJf programs.tar.xz "${programs[@]}"
    rm -r "${programs[@]}" tests
)

cp models/*.pt "$bundle/models/"
cp -L tests/data/nano-*.pt tests/data/nano-*.json tests/data/fairchem-tf32-error.json "$bundle/data/"
cp tools/gpu/run.sh tools/gpu/table.py tools/gpu/peer.py tools/reference/make_checkpoint.py "$bundle/"
cp "$target/kernels/table.txt" "$bundle/kernels.txt"
git rev-parse HEAD >"$bundle/commit" 2>/dev/null || echo unknown >"$bundle/commit"
du -sh "$bundle"
