# Everything runs in a virtual environment of its own; only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The CPU build where the package index offers one under this version; only the tests need torch.
TORCH ?= torch==2.13.0

.PHONY: demo test check gpu clean

demo: $(VENV)/engine.stamp ## convert the bundled checkpoint and let llama.cpp speak
	$(BIN)/gguf-mla demo

test: $(VENV)/test.stamp ## run the whole test suite
	$(BIN)/python -m pytest

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
