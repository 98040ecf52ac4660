# Nightmarket: the verbs. `make help` lists them.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NM := $(BIN)/python -m nightmarket.local

unexport PYTHONDONTWRITEBYTECODE  # without it every process would compile everything again
.DEFAULT_GOAL := help
.PHONY: help demo up down test test-slow torture quality fix bench sandbox psql clean lock

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## two real nights and a campaign from nothing, then stop everything (about 3 minutes)
	@$(NM) demo

up: $(VENV)/.installed ## start PostgreSQL, the sandbox and Airflow, and keep them running
	@$(NM) up

down: $(VENV)/.installed ## stop what `make up` (or a killed demo) left running
	@$(NM) down

test: $(VENV)/.installed-dev ## the tests that take seconds each: all that is not in test-slow
	@$(BIN)/pytest -q -n 2 --dist loadgroup -m "not slow and not e2e"

test-slow: $(VENV)/.installed-dev ## the tests that take longer, the end-to-end night included
	@$(BIN)/pytest -q -n 2 --dist loadgroup -m slow
	@$(BIN)/pytest -q -m e2e

torture: $(VENV)/.installed-dev ## a thousand workers killed at random moments, thousands of experiments against the truth (NIGHTMARKET_KILLS=100 for fewer)
	@$(BIN)/pytest -q -s tests/faults/torture.py
	@NIGHTMARKET_EXPERIMENTS=$${NIGHTMARKET_EXPERIMENTS:-2000} $(BIN)/pytest -q -s tests/faults/test_truth.py

quality: $(VENV)/.installed-dev ## check only: ruff, mypy, import rule, SQL style, configuration
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/sqlfluff lint -q include/sql
	@$(BIN)/nightmarket check

fix: $(VENV)/.installed-dev ## rewrite what can be rewritten: ruff, sqlfluff
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/sqlfluff fix -q include/sql

bench: $(VENV)/.installed-dev ## what the product promises, measured at a small size: DAG import, ingest, limits, audience, outbox, sending, marts, night
	@$(BIN)/python benchmarks/dag_import.py
	@$(BIN)/python benchmarks/ingest.py
	@$(BIN)/python benchmarks/limit.py
	@$(BIN)/python benchmarks/push.py
	@$(BIN)/python benchmarks/marts.py
	@$(BIN)/python benchmarks/night.py

sandbox: $(VENV)/.installed ## the platforms alone, on 127.0.0.1; keys in var/sandbox/access.json
	@$(NM) sandbox

psql: $(VENV)/.installed ## an SQL prompt in the running stack's warehouse (or the demo's: make psql STACK=demo)
	@$(NM) psql $(STACK)

clean: ## remove what was built and run here: .venv, var, caches
	@if [ -x $(BIN)/python ]; then $(NM) down || true; fi
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

lock: $(VENV)/.installed ## pin every dependency again, with hashes
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate requirements.txt -o requirements.lock
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate requirements-dev.txt -o requirements-dev.lock
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate requirements-server.txt -o requirements-server.lock

$(BIN)/uv: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "Nightmarket needs Python 3.11 or newer; '$(PYTHON)' was not found. Install it, or say which: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Nightmarket needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Say which one to use: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; install it (Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@awk '/^uv==/ {on=1} on {print} on && !/\\$$/ {exit}' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock || { echo "Installing uv from requirements.lock failed; is the package index reachable?"; exit 1; }
	@touch $(BIN)/uv

# What is used is compiled at its first import and kept: half of what is installed never is.
# An index that only pip knows about (pip.conf) is the reason for the second way.
define install
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r $(1) \
	  || $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(1) \
	  || { echo "Installing $(1) failed; the lines above say which package."; exit 1; }
endef

$(VENV)/.installed: requirements.lock pyproject.toml $(BIN)/uv
	@echo "installing what requirements.lock names into $(VENV)"
	$(call install,requirements.lock)
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(call install,requirements-dev.lock)
	@touch $@
