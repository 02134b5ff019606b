# Everything runs in a virtual environment of its own; only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The CPU build where the package index offers one under this version. `verify` needs torch, and so do the tests.
TORCH ?= torch==2.13.0

# A test file runs in one process, as many files at a time as there are processors; each then needs but one thread.
PYTEST = OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

.PHONY: demo test exhaustive quick elsewhere bench-smoke check gpu clean

demo: $(VENV)/engine.stamp ## convert the bundled checkpoint and let llama.cpp speak
	$(BIN)/gguf-mla demo
	@echo; echo "To go on:  . $(BIN)/activate  and then  gguf-mla --help"

test: $(VENV)/test.stamp ## run the whole test suite
	$(PYTEST)

exhaustive: $(VENV)/test.stamp ## what takes long and seldom finds more than the rest: by hand, when its subject changes
	$(PYTEST) -m 'exhaustive and not gpu'

quick: $(VENV)/test.stamp ## the quick part: no other program judges, no GPU is simulated, few cases of each kind
	$(PYTEST) -m 'not gpu and not judge and not cuda and not slow and not thorough and not exhaustive'

# Sums in other orders, and files as where Linux's own calls fail. torch without its AVX2 kernels adds everything in
# another order, and MKL's products for every CPU do, too. (Of other switches, MKL_ENABLE_INSTRUCTIONS and
# ONEDNN_MAX_CPU_ISA change no sum here.) The rest of tests/verify sees names, keys and bytes, which are the same
# everywhere.
SUMS = $(patsubst %,tests/verify/test_%.py,attention forward indexer levels rounding significance sparse walk)
elsewhere: $(VENV)/test.stamp ## run as on other machines what depends on the machine
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE $(PYTEST) -m 'not gpu and not cuda and not slow' $(SUMS)
	GGUF_MLA_PORTABLE=1 $(PYTEST) tests/test_crash.py $(patsubst %,tests/guard/test_%.py,names meanwhile) \
		$(patsubst %,tests/gguf_mla/test_%.py,splits stream)

# The golden bytes of every type from machine code for other processors and this one, each in a process of its own. What
# is made for haswell, AVX2 without AVX-512, differs from a machine's own code only where that has AVX-512.
CPUS = generic native $(shell grep -qs avx512f /proc/cpuinfo && echo haswell)
bench-smoke: $(CPUS:%=golden-%) ## what the benchmarks measure gives the same bytes on other processors

golden-%: $(VENV)/test.stamp
	$(if $(filter native,$*),,NUMBA_CPU_NAME=$*) $(BIN)/python -m pytest tests/gguf_mla/test_ggtypes.py

# Builds nothing, so that it runs where nothing can be downloaded: in the environment, if there is one, or as PYTHON.
gpu: ## test and measure a CUDA device
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

check: $(VENV)/test.stamp ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/engine.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[engine]'
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

clean: ## remove the environment and all caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
