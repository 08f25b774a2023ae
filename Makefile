# make demo         what it can do, in five minutes, from nothing
# make test         lint, layers, types and tests, no torch
# make test-system  whole commands, and processes that are stopped and go on
# make test-tpu     the kernel and the train step compiled for TPUs that are not there
# make test-gpu     train steps compiled for GPUs that are not there; fetches 3 GB for the compiler
# make parity       live comparison with PyTorch
# make test-long    the long proofs; their results stand in benchmarks/results/
# make gpu-kit      correctness and times on a GPU, with what $(PYTHON) has installed and no network: 9 minutes at most
# make gpu-kit-tiny the same at tiny sizes, on any machine; KIT_FLAGS are options of both
# make docs         the documentation site, in site/; warnings are errors
# make wheel        the wheel and the source archive, in dist/
# make test-wheel   the wheel in an empty environment: the command line and a prediction
# make lock         new locks/ from the newest releases; the one command that makes them
#
# Each but the GPU kit makes the virtual environment it needs in $(VENV) (docs: in $(DOCS_VENV)) and works alone in a fresh clone. Versions come
# from the lock of the Python that is used, so that no later release can break them:
#   make test PYTHON=python3.12                      another Python
#   make test LOCK=locks/lowest.txt VENV=.venv-low   the oldest versions that pyproject.toml allows, on Python 3.11
#   make test LOCK= VENV=.venv-new                   the newest of everything

PYTHON ?= python3
VENV ?= .venv
DOCS_VENV ?= .venv-docs
LOCK ?= locks/python$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
LOCKED_PYTHONS := 3.11 3.12 3.13 3.14
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# uv installs in seconds what takes pip minutes. Directories of wheels that pip is configured with are used too.
UV := UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python
INSTALL := $(UV) $(if $(LOCK),--constraint $(LOCK))
LOWEST := $(wildcard tests/test_*.py) $(addprefix tests/,data export inference models ops text training weights)
FAST := not (slow or long or system or parity or tpu_aot or gpu_aot)
PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest --durations=30 --durations-min=5

.PHONY: demo test lint types test-system test-tpu test-gpu parity test-long docs wheel test-wheel gpu-kit gpu-kit-tiny lock clean

demo: $(VENV)/.installed
	JAX_PLATFORMS=cpu $(BIN)/deberta-jax demo --output demo-output

# QUICK=1 leaves out the tests that are marked slow and, of the comparison with PyTorch, all but the first case of each
# test and every case of the models.
# Types are checked against the libraries' newest stubs; the oldest releases have fewer and other ones.
# With them slow tests, all but the first case of each test, and commands, servers and plans are left out: behaviour is
# the same, only the interfaces of the libraries differ.
test: $(VENV)/.installed-dev lint $(if $(findstring lowest,$(LOCK)),,types)
	$(PYTEST) -n 2 --dist worksteal $(if $(QUICK)$(findstring lowest,$(LOCK)),-m '$(FAST)') $(if $(findstring lowest,$(LOCK)),--first-cases $(LOWEST))

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/terms.py

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --project tests/typing
	$(BIN)/pyright --pythonpath $(BIN)/python --project examples

test-system: $(VENV)/.installed-dev
	$(PYTEST) -n 2 --dist worksteal -m 'system and not long$(if $(QUICK), and not slow)'

# One process at a time: libtpu keeps others out.
test-tpu: $(VENV)/.installed-dev
	$(INSTALL) --editable '.[dev,tpu]'
	JAX_ENABLE_COMPILATION_CACHE=false TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost $(PYTEST) -m 'tpu_aot and not long' tests/aot

test-gpu: $(VENV)/.installed-dev
	$(INSTALL) --editable '.[dev,cuda12]'
	JAX_ENABLE_COMPILATION_CACHE=false $(PYTEST) -m 'gpu_aot and not long' tests/aot_gpu

parity: $(VENV)/.installed-parity
	$(PYTEST) -n 2 --dist worksteal $(if $(QUICK),--first-cases) -m 'parity and not long$(if $(QUICK), and not slow)' tests/parity

test-long: $(VENV)/.installed-parity
	$(PYTEST) -m long --timeout 5400

# NO_MKDOCS_2_WARNING: the theme's note about a future MkDocs, which pyproject.toml excludes.
docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/$(notdir $(BIN))/mkdocs build --strict

wheel: $(BIN)/uv
	$(INSTALL) hatchling
	rm -rf dist
	$(BIN)/python -m hatchling build

test-wheel: wheel
	$(PYTHON) scripts/try_wheel.py dist/*.whl $(if $(LOCK),--constraint $(LOCK))

gpu-kit:
	$(PYTHON) benchmarks/gpu/kit.py $(KIT_FLAGS)

gpu-kit-tiny:
	$(PYTHON) benchmarks/gpu/kit.py --tiny $(KIT_FLAGS)

# Dependencies as old as pyproject.toml allows, with today's tools around them; then the newest for each Python.
lock: $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml --extra parquet --extra zstd --extra tensorboard --extra onnx --extra serve --resolution lowest-direct \
	  --universal --python-version 3.11 --no-header --quiet --upgrade --output-file $(VENV)/lowest.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra tpu --constraint $(VENV)/lowest.txt --universal \
	  --python-version 3.11 --no-annotate --custom-compile-command 'make lock' --quiet --upgrade \
	  --output-file locks/lowest.txt
	for version in $(LOCKED_PYTHONS); do \
	  $(BIN)/uv pip compile pyproject.toml --extra dev --extra tpu --extra gcs --extra k8s $$([ $$version = 3.11 ] && echo --extra parity) \
	    --universal --python-version $$version --no-annotate --custom-compile-command 'make lock' --quiet --upgrade \
	    --output-file locks/python$$version.txt || exit 1; \
	done

$(LOCK):
	@echo "no $@: make lock makes those of Python $(LOCKED_PYTHONS); or give LOCK= for the newest of everything" >&2
	@exit 2

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(BIN)/uv: | $(BIN)/python
	$(BIN)/pip install --quiet uv

$(VENV)/.installed: pyproject.toml $(LOCK) | $(BIN)/uv
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(LOCK) | $(BIN)/uv
	$(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.installed

# torch first and by its exact version: a looser requirement would fetch a CUDA build of several gigabytes.
$(VENV)/.installed-parity: $(VENV)/.installed-dev
	$(UV) torch==2.13.0
	$(INSTALL) --editable '.[dev,parity]'
	$(UV) --no-deps deberta==0.1.12
	touch $@

# The extra alone: the package and its dependencies are not needed to read its source. No lock has these packages.
$(DOCS_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/$(notdir $(BIN))/pip install --quiet $$($(PYTHON) -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

clean:
	rm -rf .cache demo-output dist build site .pytest_cache .ruff_cache .import_linter_cache .hypothesis
