# Each target sets up its own environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-quick aot scaling scaling-page clean

quickstart: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

test: .venv/ready-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-quick: .venv/ready-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

# Every published run, compiled for the pods it is meant for: minutes each.
aot: .venv/ready-test
	$(BIN)/python -m pytest -v -m aot tests/aot

# Compiles for chips that are not there whatever has changed (hours on two cores), and writes the page.
scaling: .venv/ready-tpu
	$(BIN)/virtue scale --study all --page docs/scaling.md

# The page from the reports that are kept beside it.
scaling-page: .venv/ready
	$(BIN)/virtue scale --study all --from docs/scaling/reports --page docs/scaling.md

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "virtue_jax needs Python >= 3.11, this is " + sys.version.split()[0] + "; run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python setup.py
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/ready-tpu: .venv/ready
	$(BIN)/python -m pip install -q -e '.[tpu]'
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
