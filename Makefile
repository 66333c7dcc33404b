# Every target makes the environment it needs: .venv, once, and again only when requirements.lock changes.

# The first interpreter that runs (a version manager's shim may not), is supported, and can make environments.
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)

BIN := .venv/bin
# Stamps are named by what they stand for: the content of the lock or of pyproject.toml, and where the checkout is.
LOCKED := .venv/locked-$(shell { pwd; cat requirements.lock; } 2>/dev/null | cksum | cut -d ' ' -f 1)
READY := .venv/ready-$(shell { pwd; cat requirements.lock pyproject.toml; } 2>/dev/null | cksum | cut -d ' ' -f 1)

# No outside connection but the package install, and nothing written to the user's ~/.prefect.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT := false
export PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY := false
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export PREFECT_HOME ?= $(if $(HEADRACE_HOME),$(HEADRACE_HOME),$(CURDIR)/.headrace)/prefect

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
# Loads the library itself, so that the check is of what this system has and not of what it is called.
LIGHTGBM := import ctypes, glob, importlib.util as u; \
	[ctypes.CDLL(p) for p in glob.glob(u.find_spec("lightgbm").submodule_search_locations[0] + "/lib/lib_lightgbm.*")]

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-faults test-cgroup-v2 lint format up bench lock clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Replay the flights of 2013 through the whole loop, from an empty workspace
	@$(BIN)/headrace demo

test: $(READY) ## Run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadgroup --durations=15

test-faults: $(READY) ## Run what `make test` leaves out: hundreds of kills, longer loops, larger data (an hour)
	@$(BIN)/python -m pytest --durations=15 -m slow

test-cgroup-v2: $(READY) ## Run the tests of the cage in a guest with control groups of version 2 (six minutes, Debian)
	@$(BIN)/python tests/memory/cgroup_v2.py $(BIN)/python -m pytest tests/memory/test_cage.py tests/memory/places_v2.py \
		tests/engine/memory

lint: $(READY) ## Check style, types and floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(READY) ## Format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

up: $(READY) ## Start a server and a worker on this machine, with all deployments
	@$(BIN)/headrace up

bench: bench-loop ## Run all benchmarks

bench-memory: $(READY) ## Growth and price of a budget (a quarter of an hour), then all hostile tables (two hours)
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.hostile_matrix

bench-%: $(READY) ## Run one benchmark, such as bench-loop, into benchmarks/results
	@$(BIN)/python -m benchmarks.$(subst -,_,$*)

lock: ## Resolve pyproject.toml again, for all supported Pythons, into requirements.lock
	@$(MAKE) --no-print-directory .venv-lock/bin/uv
	@echo "resolving pyproject.toml into requirements.lock"
	@.venv-lock/bin/uv --quiet --no-config pip compile pyproject.toml --all-extras --universal --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --upgrade --output-file requirements.lock

clean: ## Remove the environments, the caches and the workspace
	@rm -rf .venv .venv-lock .headrace .mypy_cache .ruff_cache .pytest_cache .hypothesis benchmarks/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv-lock/bin/uv:
	$(call create_venv,.venv-lock)
	@.venv-lock/bin/python -m pip --disable-pip-version-check --no-input -qq install uv

# The stamp comes last: an install that was cut off is begun again.
$(LOCKED):
	$(call create_venv,.venv)
	@echo "installing the packages of requirements.lock into .venv (once: 1.6 GB, some minutes)"
	@$(PIP) install --require-hashes --no-deps -r requirements.lock
	@touch $@

$(READY): $(LOCKED)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m compileall -q src  # else each child compiles, where the cache is off
	@$(BIN)/python -c '$(LIGHTGBM)' 2>/dev/null || { echo "LightGBM needs the system's OpenMP library. Install it:" \
		"apt-get install libgomp1, dnf install libgomp, apk add libgomp, or brew install libomp"; exit 1; }
	@rm -f .venv/ready-*
	@touch $@

define create_venv
@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.14 with venv was found: install one" \
	"(on Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3"; exit 1; }
@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "$(PYTHON) is not Python 3.11 to 3.14 with venv"; exit 1; }
@rm -rf $(1)
@$(PYTHON) -m venv $(1)
endef
