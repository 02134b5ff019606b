# Everything runs in a virtual environment of its own; only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The CPU build where the package index offers one under this version; only the tests need torch.
TORCH ?= torch==2.13.0

# A test file runs in one process, as many files at a time as there are processors; each then needs but one thread.
PYTEST = OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick elsewhere bench-smoke check gpu clean

demo: $(VENV)/engine.stamp ## convert the bundled checkpoint and let llama.cpp speak
	$(BIN)/gguf-mla demo
	@echo; echo "To go on:  . $(BIN)/activate  and then  gguf-mla --help"

test: $(VENV)/test.stamp ## run the whole test suite
	$(PYTEST)

quick: $(VENV)/test.stamp ## the quick part: no other program judges, no GPU is simulated, few cases of each kind
	$(PYTEST) -m 'not gpu and not judge and not cuda and not slow and not thorough'

# Sums in the orders of other CPUs, the golden bytes from their machine code, and files as where Linux's own calls fail.
# The rest of tests/verify sees names, keys and bytes, which are the same everywhere.
SUMS = $(patsubst %,tests/verify/test_%.py,attention faults forward indexer levels observe other_makes prediction \
	rounding significance sparse sparse_faults union)
elsewhere: bench-smoke ## run as on other machines what depends on the machine
	OPENBLAS_CORETYPE=Nehalem $(PYTEST) -m 'not gpu and not cuda and not slow' $(SUMS)
	OPENBLAS_CORETYPE=Haswell $(PYTEST) -m 'not gpu and not cuda and not slow' $(SUMS)
	GGUF_MLA_PORTABLE=1 $(PYTEST) tests/test_crash.py tests/guard tests/gguf_mla/test_stream.py tests/gguf_mla/test_splits.py

# The golden bytes of every type from machine code for three processors, each in a process of its own, side by side.
GOLDEN = $(BIN)/python -m pytest tests/gguf_mla/test_ggtypes.py
bench-smoke: $(VENV)/test.stamp ## what the benchmarks measure gives the same bytes on other processors
	NUMBA_CPU_NAME=haswell $(GOLDEN) & haswell=$$!; NUMBA_CPU_NAME=generic $(GOLDEN) & generic=$$!; \
	$(GOLDEN); native=$$?; wait $$haswell && wait $$generic && exit $$native

# Builds nothing, so that it runs where nothing can be downloaded: in the environment, if there is one, or as PYTHON.
gpu: ## test and measure a CUDA device
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

check: $(VENV)/test.stamp ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/engine.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[engine,verify]'
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

clean: ## remove the environment and all caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
