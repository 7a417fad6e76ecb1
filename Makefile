# The project's tasks; `make` lists them. Everything runs in .venv, which the first task makes.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# Every task starts processes by the dozen: without what Python keeps of a source, each would compile all of them anew.
unexport PYTHONDONTWRITEBYTECODE
WHICH ?= real
SYSTEM_PACKAGES := containerd curl docker-registry e2fsprogs mount util-linux zstd

help: ## List the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: .venv/installed ## A Gemma release from hub to validated, serving server, on this machine
	@$(BIN)/gemma-pipelines run 03

test: .venv/installed ## Every test that needs nothing but this machine
	@$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

test-unit: .venv/installed ## The unit tests, in seconds
	@$(BIN)/pytest tests/unit

real: .venv/installed ## Build the real parts: a control plane with its snapshot controller, gcsfuse, a gateway's controller and picker, vLLM on the CPU (minutes, once)
	@$(BIN)/python -m emulated_cloud.real build $(PARTS)

test-real: .venv/installed ## The tests against the real parts, which `make real` has built
	@$(BIN)/pytest -m "$(WHICH)" -n 3 --dist loadfile --no-loadscope-reorder tests/real

test-system: .venv/installed system-packages ## The disk builder against Debian's containerd and registry, as root
	@$(BIN)/pytest -m system tests/system

system-packages:
	@dpkg -s $(SYSTEM_PACKAGES) >/dev/null 2>&1 || { apt-get update -q && apt-get install -qy --no-install-recommends $(SYSTEM_PACKAGES); }

lint: .venv/installed ## Style, types, and which package may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/mypy images/disk-builder/build_disk.py
	@$(BIN)/lint-imports --no-cache

format: .venv/installed ## Put the code into the project's style
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

golden: .venv/installed ## Write the golden files again, to be reviewed as code
	@$(BIN)/pytest -q tests/golden --update-golden

lock: .venv/installed ## Pin every dependency again, from setup.cfg
	@$(BIN)/pip install --quiet --constraint constraints.txt uv
	@UV=$(BIN)/uv images/components/lock.sh

bench: bench-transfer bench-hydrate bench-bake bench-load ## Every benchmark; figures go to build/bench/

bench-transfer: .venv/installed ## Hub to bucket: ours, what a user would write, the machine's limit
	@$(BIN)/python -m tests.bench.transfer --docs docs/transfer.md

bench-hydrate: .venv/installed ## Bucket to disk: ours, what a user would write, cp and sha256
	@$(BIN)/python -m tests.bench.hydrate --docs docs/volumes.md

bench-load: .venv/installed ## How many tokens a second the load generator keeps up with
	@$(BIN)/python -m tests.bench.load

bench-bake: .venv/installed system-packages ## A disk of container images: ours and the public builder's way, as root
	@$(BIN)/python -m tests.bench.bake --docs docs/disk-image.md

clean: ## Remove what the tasks made
	@rm -rf .venv build out *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/installed: setup.cfg pyproject.toml emulators/pyproject.toml constraints.txt
	@echo "setting up .venv (once; a minute or two)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ./emulators --editable '.[dev]'
	@touch $@
	@echo "the command: $(CURDIR)/$(BIN)/gemma-pipelines (. $(BIN)/activate puts it on PATH)" >&2

.PHONY: help demo test test-unit real test-real test-system system-packages lint format golden lock bench bench-transfer bench-hydrate bench-bake bench-load clean
