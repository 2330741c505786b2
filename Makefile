# `make help` lists the targets. Another Python or another place for the environment:
# make test PYTHON=/usr/bin/python3 VENV=/tmp/venv

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest
INSTALLED = $(VENV)/.installed

.PHONY: help setup system-packages test check architecture demo oracle crash fsx bench build clean

help: ## print this list (the default)
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 10

setup: $(INSTALLED) ## make the virtual environment and install the project and its tools into it

system-packages:
	@PYTHON=$(PYTHON) .ci/system-packages

$(INSTALLED): pyproject.toml | system-packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo '$(PYTHON) is not Python 3.11 or later: name one with PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'from ensurepip import version' 2>/dev/null || \
	    { echo '$(PYTHON) cannot make virtual environments: install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(INSTALLED)

test: setup ## run the whole test suite but its long runs
	$(PYTEST) -n 2

check: setup ## lint, formatting, types, and the imports against docs/architecture.md
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -q tests/test_architecture.py

demo: setup ## show what it does, on a small tree of its own
	@PATH="$(abspath $(BIN)):$$PATH"; if test -f demo/demo.sh; then sh demo/demo.sh; else python demo/demo.py; fi

oracle: setup ## long run of the state machines against the kernel (half an hour)
	HYPOTHESIS_PROFILE=long $(PYTEST) -n 2 --timeout 0 -m 'slow or not slow' tests/property

crash: setup ## every operation killed at every system call (minutes)
	$(PYTEST) -n 2 --timeout 0 -m 'slow or not slow' tests/crash

fsx: setup ## long runs on FUSE mounts: random I/O, kills, walks against the kernel (half an hour)
	$(PYTEST) -n 2 --timeout 0 -m 'slow or not slow' tests/fuse

bench: setup ## measure what the engine and the FUSE host cost (root; 8 GiB for images; minutes)
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/fuse.py

build: setup ## build the source archive and the wheel into dist/
	$(BIN)/python -m build --quiet

clean: ## remove everything that these targets made
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +
