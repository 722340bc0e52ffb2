# Everything a person types here. A machine needs Python 3.11+, make and git; the rest is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
LOCKS := deploy/requirements
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r
MANAGE := $(BIN)/python manage.py

.DEFAULT_GOAL := help
.PHONY: help up test test-quick check bench lock migrations format clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

up: .venv/.embedded ## Start the whole portal; Ctrl-C stops it
	@$(BIN)/python -m llamaproj.cli up

test: .venv/.dev ## The whole test suite
	$(BIN)/python -m pytest $(ARGS)

test-quick: .venv/.dev ## The tests that need no running portal: under a minute
	$(BIN)/python -m pytest -m "not portal and not slow" $(ARGS)

# Nothing of `check` touches the data of a portal that runs here.
check: export DATA_DIR := $(CURDIR)/.data-check
check: .venv/.dev ## Linters, formatter, types, floors, deployment settings, migrations, the REST schema
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	SECURE=1 ALLOWED_HOSTS=portal.example.org $(MANAGE) check --deploy --fail-level WARNING
	PYTHONPATH=. $(BIN)/python deploy/check_migrations.py
	$(MANAGE) spectacular --validate --fail-on-warn --file $(DATA_DIR)/schema.yml

bench: .venv/.dev ## The benchmarks, as ratios against baselines of the same run
	$(BIN)/python -m benchmarks $(ARGS)

format: .venv/.dev ## Let ruff write the code its way
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv/.dev ## Renew deploy/requirements from pyproject.toml
	$(BIN)/python deploy/requirements/lock.py $(ARGS)

clean: ## Remove what `make` installed; DATA_DIR stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Each stamp is newer than what was installed for it, so that a second start installs nothing.

.venv/.uv: $(LOCKS)/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llamaproj needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked packages (the first time this takes a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(LOCKS)/uv.txt
	@touch $@

# Seven processes begin with the same modules; they are compiled here, once.
.venv/.embedded: .venv/.uv $(LOCKS)/embedded.txt
	@$(INSTALL) $(LOCKS)/embedded.txt --compile-bytecode
	@touch $@

.venv/.dev: .venv/.uv $(LOCKS)/dev.txt pyproject.toml
	@$(INSTALL) $(LOCKS)/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
