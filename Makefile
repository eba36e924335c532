# umaserve: `make serve` and `make test` are all one needs; `make help` lists the rest.

# The checkpoint to serve; empty: the one that ships with umaserve.
MODEL ?=
# Processes: one front, the others compute. 1 runs everything in one process.
RANKS ?= 3
# Where viewers connect.
BIND ?= 127.0.0.1:8000
# Where recordings go; empty: none.
RECORD ?= runs
# More options of `umaserve serve`.
ARGS ?=
# How long each fuzz target runs.
FUZZ_SECONDS ?= 8

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help serve build page test test-page test-python bench fuzz check test-core kernels docs setup setup-tests nvcc readers

# Built without optimisation: that takes one or two minutes, once.
CARGO_DENY = 0.20.2

# For tests that compute little: compiled sooner than run.
QUICKLY = --config profile.dev.package.umaserve.opt-level=0

# target/debug/umaserve as the tests have it; `cargo build` would compile everything once more, without the
# features that the dependencies of tests switch on.
DEBUG_BINARY = cargo test --quiet --locked --features host-kernels --no-run --test architecture

# A toolchain that setup installs is not in PATH yet.
export PATH := $(CURDIR)/target/tools/bin:$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

# Open MPI 4 and 5: run as root (containers), with more ranks than cores, without pinning the ranks
# to single cores (each runs many threads), without giving the core away at every look for a message
# (umaserve sleeps between looks; on a busy machine the core comes back milliseconds later).
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export OMPI_MCA_rmaps_base_oversubscribe := 1
export OMPI_MCA_hwloc_base_binding_policy := none
export OMPI_MCA_mpi_yield_when_idle := 0
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
export PRTE_MCA_hwloc_default_binding_policy := none

SERVE = $(or $(CARGO_TARGET_DIR),target)/release/umaserve serve --bind $(BIND) \
	$(if $(MODEL),--model '$(MODEL)') $(if $(RECORD),--record '$(RECORD)') $(ARGS)

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo
	@echo 'Variables: MODEL=FILE.pt RANKS=3 BIND=127.0.0.1:8000 RECORD=runs ARGS=...'

serve: build ## Install what is missing, build, and serve (RANKS processes under mpirun)
	$(if $(filter 1,$(RANKS)),exec,exec mpirun -n $(RANKS)) $(SERVE)

# Kernels where they are of use: a machine with a GPU, or with a CUDA compiler.
build: setup page $(if $(shell command -v nvidia-smi),nvcc) ## The release binary with the page in it, target/release/umaserve
	cargo build --release --locked

page: setup ## The viewer page, viewer/dist; built again when its sources have changed
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory viewer/dist/index.html; \
		else echo 'page: no npm; the server will say that it was built without its page'; fi

viewer/node_modules/.package-lock.json: viewer/package.json viewer/package-lock.json
	cd viewer && npm ci --no-audit --no-fund --ignore-scripts
	@touch $@

viewer/dist/index.html: viewer/node_modules/.package-lock.json proto/session.proto viewer/index.html \
		viewer/buf.gen.yaml viewer/vite.config.ts viewer/tsconfig.json \
		$(shell find viewer/src viewer/public -type f -not -path '*/generated/*')
	cd viewer && npm run --silent build
	@touch $@

test: setup-tests nvcc readers page ## All tests, with the CUDA kernels on the host, the Python readers, mpirun, a browser
	cargo test --locked --no-default-features --lib --test architecture $(QUICKLY)
	$(MAKE) --no-print-directory test-python test-page
	UMASERVE_PYTHON="$${UMASERVE_PYTHON:-$$(tools/readers.sh)}" \
		cargo test --locked --features host-kernels

# What needs no other machinery than Rust, MPI and HDF5.
test-core: setup ## The quick part of the tests: units, layering, sessions, scheduling, neighbours, dynamics
	cargo test --locked --lib --test architecture --test session --test scheduler \
		--test neighbors --test dynamics

test-python: setup readers ## Tests of the Python client, its examples and its notebook, against a real server
	$(DEBUG_BINARY)
	@python="$${UMASERVE_PYTHON:-$$(tools/readers.sh)}"; cd python; \
	$$python -m ruff format --check --quiet .; $$python -m ruff check --quiet .; $$python -m mypy; \
	UMASERVE="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug/umaserve" $$python -m pytest -q

test-page: setup readers page ## Tests of the page: its parts, then a visit with a browser against a real server
	@tools/setup.sh browser
	@command -v npm >/dev/null || { echo 'test-page: skipped, there is no npm'; exit 0; }; \
	$(DEBUG_BINARY); \
	cd viewer && npm run --silent test && UMASERVE="$$PWD/../target/debug/umaserve" \
		UMASERVE_PYTHON="$${UMASERVE_PYTHON:-$$(../tools/readers.sh)}" npm run --silent e2e

fuzz: setup ## Feed damaged input to everything that reads, FUZZ_SECONDS each
	fuzz/run.sh $(FUZZ_SECONDS)

bench: setup ## All benches; each prints a table
	cargo bench --locked

kernels: setup nvcc ## Compile the CUDA kernels; registers, shared memory and spills of each
	cargo check --locked --lib
	@cat "$${CARGO_TARGET_DIR:-target}/kernels/table.txt"

check: setup nvcc ## Formatting, clippy, docs, licenses: what CI asks besides the tests
	cargo fmt --check
	cargo clippy --locked --all-targets --features host-kernels -- -D warnings
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
	command -v cargo-deny >/dev/null || \
		cargo install --quiet --locked --debug --root target/tools cargo-deny@$(CARGO_DENY)
	cargo fetch --quiet --locked  # those of other platforms too
	cargo deny --offline check --hide-inclusion-graph bans licenses sources

docs: setup ## The documentation of the code, in target/doc/umaserve/index.html
	cargo doc --locked --no-deps

setup:
	@tools/setup.sh

setup-tests:
	@tools/setup.sh tests

nvcc: setup
	@tools/nvcc.sh >/dev/null

readers: setup
	@[ -n "$${UMASERVE_PYTHON:-}" ] || tools/readers.sh >/dev/null
