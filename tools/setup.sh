#!/usr/bin/env bash
# Installs what building umaserve needs and is missing: Debian/Ubuntu packages (with sudo when not
# root) and a Rust toolchain for this user. Says what it does; does nothing, quickly, when all is
# there. On other systems it names what is missing. `tools/setup.sh tests` installs what only tests
# need as well: a Slurm to submit jobs to, and what checks scripts.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }

# --- system packages -----------------------------------------------------------------------------
packages=(
    build-essential  # C compiler and linker
    pkg-config
    libopenmpi-dev   # MPI: several ranks
    openmpi-bin      # mpirun
    libclang-dev     # reads the C headers of MPI
    libhdf5-dev      # H5MD trajectories
    python3-venv     # the readers that the tests open recordings with
    curl
    ca-certificates
)
if [ "${1:-}" = tests ]; then
    packages+=(
        slurmctld slurmd slurm-client munge  # tests/slurm starts them by itself
        iproute2 util-linux                  # network namespaces
        ruby                                 # renders the Open OnDemand app
        shellcheck
    )
fi
# The page is built with npm; a newer Node than Debian's is taken as it is.
command -v npm >/dev/null || packages+=(nodejs npm)
# Only its tests need a browser: tools/setup.sh browser
[ "${1:-}" != browser ] || command -v chromium >/dev/null || packages+=(chromium)

installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c1-2)" = "ii" ]; }

if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    missing=()
    for package in "${packages[@]}"; do
        installed "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        as_root=()
        if [ "$(id -u)" -ne 0 ]; then
            command -v sudo >/dev/null || {
                say "missing packages: ${missing[*]}"
                say "not root and no sudo: please have them installed, then run this again"
                exit 1
            }
            as_root=(sudo)
        fi
        say "installing ${missing[*]}"
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
else
    missing=()
    for command in cc pkg-config mpicc mpirun python3 curl; do
        command -v "$command" >/dev/null || missing+=("$command")
    done
    pkg-config --exists hdf5 2>/dev/null || command -v h5cc >/dev/null || missing+=("HDF5 (headers)")
    if [ ${#missing[@]} -gt 0 ]; then
        say "not Debian or Ubuntu; please install: ${missing[*]} (also libclang)"
        say "without MPI and HDF5: cargo build --release --no-default-features"
        exit 1
    fi
fi

# --- Rust ----------------------------------------------------------------------------------------
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

rust_is_enough() {
    local have
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2) && [ -n "$have" ] &&
        [ "$(printf '%s\n%s\n' "$needed" "${have%%-*}" | sort -V | head -n1)" = "$needed" ]
}

if ! rust_is_enough; then
    if command -v rustup >/dev/null; then
        say "Rust $(rustc --version 2>/dev/null | cut -d' ' -f2) is older than $needed: getting the stable toolchain with rustup"
        rustup toolchain install stable --profile minimal --component clippy,rustfmt --no-self-update
        # For this directory only; the user's default stays.
        rustup override set stable
    else
        say "no Rust $needed or later: installing it for $(id -un) with rustup into ${CARGO_HOME:-$HOME/.cargo}"
        export RUSTUP_INIT_SKIP_PATH_CHECK=yes  # a distribution's older Rust may stay
        curl --proto '=https' --tlsv1.2 -fsSL https://sh.rustup.rs |
            sh -s -- -y --quiet --no-modify-path --profile minimal --component clippy,rustfmt
        say "to use it in your shell: . ${CARGO_HOME:-$HOME/.cargo}/env"
    fi
    rust_is_enough || { say "rustc is still not $needed or later"; exit 1; }
fi
