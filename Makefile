# Needs Python 3.11 or newer. `make run` and `make test` set up .venv first; the other targets are for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test test-slow test-all lint benchmark clean

run: $(VENV)/.installed
	$(BIN)/cifar-sweep run lr_batch --preview

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not alone" --numprocesses auto --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow and not alone" --numprocesses auto --dist worksteal
	$(BIN)/python -m pytest -m alone --numprocesses 2 --dist worksteal

test-all: test test-slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/.installed
	$(BIN)/cifar-sweep bench

clean:
	rm -rf $(VENV) dist build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/python -m compileall -q cifar_sweep
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(VENV)/.installed $@
