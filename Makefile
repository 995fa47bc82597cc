# Each target sets up its own environment in .venv, of the versions in constraints.txt;
# with `make CONSTRAINTS= TARGET` in .venv-newest, of the newest that setup.py allows.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := $(if $(CONSTRAINTS),.venv,.venv-newest)
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS),-U --upgrade-strategy eager)
# A worker that dies ends the run; xdist's own replacement of it waits for ever with `loadfile`.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart=0

.PHONY: quickstart test test-quick aot scaling scaling-page clean

quickstart: $(VENV)/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

test: $(VENV)/ready-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(PYTEST)

test-quick: $(VENV)/ready-test
	$(PYTEST) -m "not slow"

# Every published run, compiled for the pods it is meant for: minutes each.
aot: $(VENV)/ready-test
	$(BIN)/python -m pytest -v -m aot tests/aot

# Compiles for chips that are not there whatever has changed (hours on two cores), and writes the page.
scaling: $(VENV)/ready-tpu
	$(BIN)/virtue scale --study all --page docs/scaling.md

# The page from the reports that are kept beside it.
scaling-page: $(VENV)/ready
	$(BIN)/virtue scale --study all --from docs/scaling/reports --page docs/scaling.md

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "virtue_jax needs Python >= 3.11, this is " + sys.version.split()[0] + "; run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: $(BIN)/python setup.py $(CONSTRAINTS)
	$(INSTALL) -e .
	touch $@

$(VENV)/ready-tpu: $(VENV)/ready
	$(INSTALL) -e '.[tpu]'
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(INSTALL) -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-newest runs build *.egg-info
