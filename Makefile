# Everything a fresh Debian or Ubuntu machine with Python 3.11+ needs; no GPU, no other tools.
#
#   make demo        set up, then train, evaluate and report: runs/demo/report.html
#   make test        set up, then format check, lint, types and the test suite
#
# PYTHON=python3.12            another interpreter
# TWOFOLD_TORCH_INDEX=<url>    where to take torch from (say, an index of CPU builds); everything else, and torch
#                              without this, comes from where pip is set up to look
#
# The set-up is one virtual environment, .venv, made once and again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-interop bench bench-trl bench-gpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## the main job on 2 CPU cores: RL^V on procedural maths, then a report
	@$(BIN)/twofold demo

test: $(READY) ## what has to pass: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q

test-slow: $(READY) ## the long checks too
	$(BIN)/pytest -q -m slow

test-interop: $(VENV)/.interop ## other people's clients against the server
	$(BIN)/pytest -q -m 'slow or not slow' tests/test_interop.py

bench: $(READY) ## ratios of speed, each from one run (under 20 minutes on 2 CPU cores)
	cd bench && for b in limits overhead verify grading branch probe engine growth startup; do ../$(BIN)/python $$b.py || exit 1; done

bench-trl: $(READY) .venv-trl/.ready ## a training step against TRL's
	cd bench && ../$(BIN)/python against_trl.py --trl ../.venv-trl/bin/python

bench-gpu: $(READY) ## the same at Qwen2.5's shapes, on a CUDA device
	cd bench && ../$(BIN)/python gpu.py

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) .venv-trl .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# torch goes in first and alone: it is the big one, and with --no-deps an index that has only torch is enough.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "twofold needs Python 3.11 or newer, and $(PYTHON) is not. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. Try: sudo apt-get install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	@echo "[1/3] a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] torch (the large one: a minute or more)"
	@$(PIP) --no-deps $(if $(TWOFOLD_TORCH_INDEX),--index-url "$(TWOFOLD_TORCH_INDEX)") torch
	@echo "[3/3] twofold and what it uses (a minute or two)"
	@$(PIP) --editable '.[dev]'
	@touch $(READY)
	@echo "ready"

$(VENV)/.interop: $(READY)
	@$(PIP) --editable '.[dev,interop]'
	@touch $@

.venv-trl/.ready:
	@$(PYTHON) -m venv .venv-trl
	@.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    $(if $(TWOFOLD_TORCH_INDEX),--index-url "$(TWOFOLD_TORCH_INDEX)") "$(shell grep '^torch==' constraints.txt)"
	@.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check trl "transformers==5.17.0"
	@touch $@
