# make demo    what it can do, in five minutes, from nothing
# make test    lint, floors, types and tests: under 12 minutes on 2 cores, no torch
# make test-system  whole commands, and processes that are stopped and go on: 10 minutes
# make test-tpu  the kernel and the train step compiled for TPUs that are not there: 7 minutes
# make parity  live comparison with PyTorch
# make test-long  the long proofs; their results stand in benchmarks/results/
#
# Each makes the virtual environment it needs in .venv and works alone in a fresh clone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest

.PHONY: demo test lint types test-system test-tpu parity test-long clean

demo: $(VENV)/.installed
	JAX_PLATFORMS=cpu $(BIN)/deberta-jax demo --output demo-output

test: $(VENV)/.installed-dev lint types
	$(PYTEST) -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/pyright

test-system: $(VENV)/.installed-dev
	$(PYTEST) -n 2 --dist worksteal -m 'system and not long'

# One process at a time: libtpu keeps others out.
test-tpu: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --editable '.[dev,tpu]'
	TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost $(PYTEST) -m 'tpu_aot and not long' tests/aot

parity: $(VENV)/.installed-parity
	$(PYTEST) -n 2 --dist worksteal -m 'parity and not long' tests/parity

test-long: $(VENV)/.installed-parity
	$(PYTEST) -m long --timeout 5400

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

# torch first and by its exact version: a looser wish would fetch a CUDA build of several gigabytes.
$(VENV)/.installed-parity: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev,parity]'
	$(BIN)/pip install --quiet --no-deps deberta==0.1.12
	touch $@

clean:
	rm -rf demo-output dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
