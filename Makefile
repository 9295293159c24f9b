# Every target creates its own virtual environment: a new machine needs only python3
# (3.11 or newer) and make. To select an interpreter: make test PYTHON=python3.13

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(VERSION),)
$(error PYTHON=$(PYTHON) cannot be run. Pass a Python 3.11 or newer, for example PYTHON=python3.13)
endif
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
METADATA := setup.cfg pyproject.toml torchgeo_sigmae/_version.py
DEMO_ARGS ?=
DATA ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow coverage weights-check lint types docs clean

help:
	@echo 'make demo            pretrain on synthetic chips and draw pictures, minutes on a CPU'
	@echo '                     (make demo DATA=folder: on your own GeoTIFF scenes)'
	@echo 'make test            run the test suite'
	@echo 'make lint            check the style: ruff, interrogate'
	@echo 'make types           check the types: mypy'
	@echo 'make docs            build the documentation'
	@echo 'make weights-check   recompute the figures of docs/dev/weights.md (needs the real data)'
	@echo 'make coverage        run the test suite, with a floor for coverage'
	@echo 'make test-slow       run kills, several processes, memory, odd files, benchmarks'
	@echo 'make clean           remove environments and outputs'
	@echo 'PYTHON=...           select the interpreter (now $(PYTHON), Python $(VERSION))'

$(VENV)/python:
	@echo 'Creating $(VENV) ...'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp per set of extras: a set is installed again when the metadata changes.
$(VENV)/%.stamp: $(VENV)/python $(METADATA)
	@echo 'Installing torchgeo-sigmae[$*] into $(VENV) (a few minutes the first time) ...'
	$(PIP) install --editable '.[$*]'
	@touch $@

$(VENV)/plain.stamp: $(VENV)/python $(METADATA)
	@echo 'Installing torchgeo-sigmae into $(VENV) (a few minutes the first time) ...'
	$(PIP) install --editable .
	@touch $@

# Threads wait without spinning, which is several times as fast on a busy machine.
demo: $(VENV)/plain.stamp
	OMP_WAIT_POLICY=PASSIVE $(BIN)/torchgeo-sigmae demo --output outputs/demo $(if $(DATA),--data '$(DATA)') $(DEMO_ARGS)

# One worker per core; the networks in tests are too small for several threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: $(VENV)/tests,loggers,onnx.stamp
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/tests,loggers,onnx.stamp
	$(PYTEST) -m slow $(PYTEST_ARGS)

coverage: $(VENV)/tests,loggers,onnx.stamp
	$(PYTEST) --cov $(PYTEST_ARGS)

weights-check: $(VENV)/tests.stamp
	PYTHONPATH=examples $(BIN)/python -m benchmarks.weights_check

lint: $(VENV)/style.stamp
	$(BIN)/ruff check .
	$(BIN)/interrogate torchgeo_sigmae
	$(BIN)/ruff format --check .

types: $(VENV)/style.stamp
	$(BIN)/mypy

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo 'Open docs/_build/html/index.html'

clean:
	rm -rf .venv-* build dist *.egg-info docs/_build docs/api/generated outputs
