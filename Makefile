# Everything starts from here; `make` alone lists the targets. The environment, .venv, makes itself.

.DEFAULT_GOAL := help

PYTHON ?= python3
# Each test process starts a Ray of its own, of two CPUs.
TEST_PROCESSES ?= 2
# --keep leaves the cluster of `make cluster` up until Ctrl-C.
CLUSTER_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo cluster test lint format type test-sim test-mnist test-crash test-serving test-cluster test-gang test-docs test-slow bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# The stamp is written last: an installation that was interrupted starts again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11 or missing; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (the first time this takes minutes)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[convert,demo,dev,transfer]'
	@touch $@

demo: $(READY) ## Train on handwritten digits, forget three people, prove it, draw it
	@$(BIN)/sisa-ray demo

cluster: $(READY) ## Three Ray nodes and an S3 server in network namespaces, tried out by jobs (needs root)
	@$(BIN)/python -m tests.support.try_cluster $(CLUSTER_OPTIONS)

test: lint type ## Lint, types, and every test that takes seconds
	$(PYTEST) --numprocesses $(TEST_PROCESSES) --dist loadfile

lint: $(READY) ## Lint, and check the formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY) ## Format, and mend what the linter can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

type: $(READY) ## Check the types
	$(BIN)/mypy

test-sim: $(READY) ## 5,000 simulated histories of coordinators that crash, race and are paused (a minute)
	@$(BIN)/python -m tests.core.cluster --seeds 5000

test-mnist: $(READY) ## The main job: MNIST, 20 shards x 10 slices, on a real S3 server (slow)
	$(PYTEST) -m slow -k mnist

test-crash: $(READY) ## SIGKILL at every point of a run's life, and what is left of it afterwards (slow)
	$(PYTEST) -m slow -s tests/execution/test_crash_matrix.py

test-serving: $(READY) ## Replicas, coordinator, storage and proxy killed and frozen under a service (slow)
	$(PYTEST) -m slow -s tests/serving

test-gang: $(READY) ## Shards of two and four workers on Ray Train, killed inside a stage (slow)
	$(PYTEST) -m slow tests/execution/test_gang.py tests/execution/test_gang_ray.py tests/execution/test_gang_gpu.py

test-cluster: $(READY) ## Nodes of a real cluster killed, cut off and brought back; needs root and iproute2 (slow)
	$(PYTEST) -m slow -s tests/execution/test_nodes.py

test-docs: $(READY) ## What docs/operations.md tells to do, done: backup, restore, moving, keys; a Slurm job (slow)
	$(PYTEST) -m slow -s tests/cluster

test-slow: $(READY) ## Every slow test
	$(PYTEST) -m slow

bench: $(READY) ## Run the benchmarks
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit; done

clean: ## Delete the environment, the caches and the demo's files
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info sisa-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
