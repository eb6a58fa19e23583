# The commands of this repository. `make demo` and `make test` want a Debian 12 machine, root, and nothing else.

BIN := .venv/bin
# Of the tests: one for each core, each with servers of its own.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))
export PATH := $(CURDIR)/build/uv/bin:$(PATH)

.PHONY: help setup builtin demo test test-sdks test-slow bench lint format native style types contracts clean

help:
	@echo 'make demo     set everything up, then show it: an agent at work, an agent at work, create, pause, kill the server, resume, fork, swap a runner'
	@echo 'make test     set everything up, then prove it: lint, types, import contracts, native checks, tests (WORKERS=n; one for each core)'
	@echo 'make test-sdks   drive every release of the official clients that we are for, and write docs/sdks.md'
	@echo 'make test-slow what builds whole Debian systems, and what runs in the built-in templates (many minutes)'
	@echo 'make bench    set everything up, then measure it, side by side with the raw substrates'
	@echo 'make setup    only set everything up (packages, Python, guest agent, launcher, base image)'
	@echo 'make builtin  build the templates code-interpreter-v1 and desktop, for tests and benchmarks (minutes, once)'
	@echo 'make lint     style, types and import contracts only'
	@echo 'make format   put the Python sources into their one format'
	@echo 'make clean    remove what was built here; packages and cached images stay'

setup:
	@scripts/setup.sh

builtin: setup
	@$(BIN)/python scripts/builtin.py

demo: setup
	@$(BIN)/python -m examples.demo

test: setup lint native
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-sdks: setup
	@$(BIN)/python -m pytest -m 'sdks or not sdks' tests/acceptance/test_sdk_matrix.py tests/acceptance/test_sdk_templates.py

test-slow: builtin
	@$(BIN)/python -m pytest -m slow --timeout 900
	@$(BIN)/python -m pytest --timeout 300 $(wildcard tests/acceptance/test_code_interpreter.py tests/acceptance/test_desktop*.py)

bench: setup
	@$(BIN)/python -m bench

lint: style types contracts

style:
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types:
	@$(BIN)/mypy

contracts:
	@$(BIN)/lint-imports

native:
	@$(MAKE) --no-print-directory -C guest check
	@$(MAKE) --no-print-directory -C launcher

format:
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:
	@$(MAKE) --no-print-directory -C guest clean
	@$(MAKE) --no-print-directory -C launcher clean
	rm -rf build .venv .wardian .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
