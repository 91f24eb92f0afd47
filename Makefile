# Everything runs in .venv, which is built once and again when pyproject.toml or constraints.txt change.

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := policies reward rollout rlhf

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all lint format readme clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST) | awk -F: '{printf "  make %-11s%s\n", $$1, $$2}'

install: $(INSTALLED)  ## create .venv and install the pinned versions

quickstart: $(INSTALLED)  ## run the whole chain on the embedded world, in minutes on a CPU
	$(BIN)/rlhf quickstart $(ARGS)

test: $(INSTALLED)  ## run the default tests (ARGS="-k name" selects)
	$(BIN)/python -m pytest $(ARGS)

test-all: $(INSTALLED)  ## run the slow tests too; those marked gpu and benchmark stay out
	$(BIN)/python -m pytest -m "not gpu and not benchmark" $(ARGS)

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check $(PACKAGES) tests
	$(BIN)/ruff format --check $(PACKAGES) tests
	$(BIN)/pyright

format: $(INSTALLED)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix $(PACKAGES) tests
	$(BIN)/ruff format $(PACKAGES) tests

readme: $(INSTALLED)  ## write the README's tree of files again
	$(BIN)/python tests/readme_tree.py

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or pass PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
