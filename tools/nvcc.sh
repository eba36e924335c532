#!/usr/bin/env bash
# A CUDA compiler without a GPU, without root and without CUDA installed: NVIDIA's own wheels from
# PyPI in target/tools/nvcc. build.rs finds it there. Does nothing when there is an nvcc already
# ($NVCC, $CUDA_HOME, PATH) or the wheels are there. Prints the path of the compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.0
packages=(
    "nvidia-cuda-nvcc==$version.*"
    "nvidia-nvvm==$version.*"
    "nvidia-cuda-crt==$version.*"
    "nvidia-cuda-runtime==$version.*"
    "nvidia-cuda-cccl==$version.*"
)

for nvcc in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "${CUDA_PATH:+$CUDA_PATH/bin/nvcc}" \
    "$(command -v nvcc || true)"; do
    if [ -n "$nvcc" ]; then
        echo "$nvcc"
        exit
    fi
done

venv=target/tools/nvcc
find_nvcc() { find "$venv" -path '*/nvidia/*/bin/nvcc' -type f 2>/dev/null | head -n 1; }

if [ "$(cat "$venv/version" 2>/dev/null)" != "$version" ]; then
    echo "nvcc: installing ${packages[*]} into $venv (about 300 MB)" >&2
    rm -rf "$venv"
    mkdir -p "$(dirname "$venv")"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}" >&2
    [ -x "$(find_nvcc)" ] || { echo "nvcc: not in the wheels" >&2; exit 1; }
    echo "$version" >"$venv/version"
    # build.rs watches this file: from now on there is a compiler to be found.
    touch tools/nvcc.sh
fi
echo "$PWD/$(find_nvcc)"
