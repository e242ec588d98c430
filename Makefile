# `make demo` on a fresh checkout needs Python 3.11 or 3.12 and a network; everything else is installed into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench clean

# pyenv leaves `python3.x` commands that do not run, so each candidate is tried.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1 \
	&& echo $$p && break; done)
# A CPU-only torch from the public index: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq -c constraints.txt
PACKAGES := worldsim models reflectors training
define WARM_UP
from worldsim.worlds.genesis.world import GenesisWorld
world = GenesisWorld(num_envs=64)
world.step_chunk(world.goals[:, :1])
endef
export WARM_UP

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

setup: $(VENV)/.stamp  ## create .venv and install everything (again only when pyproject.toml or constraints.txt change)

$(VENV)/.stamp: pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.11 or 3.12 with venv found (constraints.txt fits no other); install one (Debian: apt-get install python3 python3-venv) or pass PYTHON=..." >&2; exit 1; }
	@start=$$SECONDS; took() { echo "      $$(( (SECONDS - start) / 60 )) min $$(( (SECONDS - start) % 60 )) s so far"; }; \
	echo "[1/4] virtual environment in $(VENV) ($$($(PYTHON) --version))"; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); took; \
	echo "[2/4] torch (the largest download)"; \
	$(PIP) "$$(grep '^torch==' constraints.txt)" $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)); took; \
	echo "[3/4] worldsim and its dependencies (a few minutes)"; \
	rm -rf worldsim.egg-info; $(PIP) -e '.[dev,export,robot]'; took; \
	.ci/system_libraries || true; \
	echo "[4/4] the simulator's kernels (compiled and cached once, about a minute)"; \
	$(BIN)/python -W ignore -c "$$WARM_UP" || echo "      left for later: no physics world can be built here"; took
	@touch $@

$(VENV)/.nerf: $(VENV)/.stamp
	@echo "nerfstudio, PushT and Meta-World, for tests and checks of what needs them (a few minutes)"
	@$(PIP) -e '.[dev,export,metaworld,nerf,pusht,robot]' $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@touch $@

demo: setup  ## the whole pipeline on the embedded default; options in ARGS
	$(BIN)/worldsim demo $(ARGS)

test: $(VENV)/.nerf  ## run the tests that need no GPU, with two workers; options in ARGS, then with one
ifeq ($(ARGS),)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "not gpu and not alone"
	$(BIN)/python -m pytest -m alone $$(grep -rl "mark.alone" tests --include="test_*.py")
else
	$(BIN)/python -m pytest $(ARGS)
endif

check: $(VENV)/.nerf  ## formatting, lint, types and the dependency rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup  ## run every benchmark
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:  ## remove caches and build products; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
