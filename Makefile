# Every target that installs does so into .venv, from the lock, with hashes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
PROTOS = $(shell cd protos && find foresight inference -name '*.proto' | sort)

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements-build.lock requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Foresight needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements-build.lock
	$(PIP) --require-hashes --no-build-isolation --use-pep517 -r requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

setup: $(VENV)/.installed ## Install everything into .venv

demo: setup ## Run the whole prediction service on a year of real flights (FULL=1: every flight)
	$(BIN)/python -m examples.flights $(if $(FULL),--full)

test: setup ## Run the tests
	$(BIN)/python -m pytest

chaos: setup ## Run the long tests with killed processes and cut connections
	$(BIN)/python -m pytest tests/chaos

up: setup ## Start the local stack in the background
	$(BIN)/foresight up --detach

down: ## Stop the local stack
	@if [ -x $(BIN)/foresight ]; then $(BIN)/foresight down; else echo "nothing is installed here, so nothing runs"; fi

lint: setup ## Check style, types, import rules, protos and generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy services sdk gateway deploy examples benchmarks tests
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	$(MAKE) --no-print-directory proto GEN=.venv/gen-check
	diff -r -x __pycache__ protos/gen .venv/gen-check

check: lint test ## What CI runs, without its extra checks

GEN ?= protos/gen
proto: setup ## Generate code from the protos
	rm -rf $(GEN) && mkdir -p $(GEN)
	cd protos && PATH="$(CURDIR)/$(BIN):$$PATH" ../$(BIN)/python -m grpc_tools.protoc -I . \
	  --python_out=../$(GEN) --mypy_out=quiet:../$(GEN) --grpc_python_out=../$(GEN) --mypy_grpc_out=quiet:../$(GEN) $(PROTOS)

lock: setup ## Resolve the dependencies anew (names, versions and hashes only)
	$(BIN)/uv pip compile -q pyproject.toml --upgrade --python-version 3.11 --universal --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --upgrade --python-version 3.11 --universal --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -c requirements.lock -o requirements-dev.lock
	$(BIN)/uv pip compile -q --group build --upgrade --python-version 3.11 --universal --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -c requirements-dev.lock -o requirements-build.lock

bench-predictor: setup ## Measure what a prediction costs, what overload leaves of it, and others beside it (half an hour)
	$(BIN)/python -m benchmarks.predictor

bench-start: setup ## Measure how long the local stack takes to be ready
	$(BIN)/python -m benchmarks.start

bench-logger: setup ## Measure what storing a prediction costs the logger and PostgreSQL
	$(BIN)/python -m benchmarks.logger

bench-feature_store: setup ## Measure the feature store, beside Feast and beside its own limits (about half an hour)
	$(BIN)/python -m benchmarks.feature_store

clean: ## Remove what the targets made
	rm -rf $(VENV) var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help setup demo test chaos up down lint check proto lock bench-start bench-feature_store bench-predictor bench-logger clean
