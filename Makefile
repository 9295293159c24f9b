# Everything here makes its own virtual environment: a fresh machine needs only python3
# (3.11 or newer) and make. Another interpreter: make test PYTHON=python3.13

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
SOAK_ARGS ?=
VERSIONS_ARGS ?=
DATA ?=

.DEFAULT_GOAL := help
.PHONY: help demo test soak versions weights-check lint types docs clean

help:
	@echo 'make demo   pretrain on the embedded default, with pictures at the end'
	@echo '           (make demo DATA=folder: on your own GeoTIFF scenes)'
	@echo 'make test   the whole test suite'
	@echo 'make soak   kills, fuzzing, memory, coverage, mutants: under an hour (docs/reliability)'
	@echo 'make versions   the tests on every Python, TorchGeo and kornia: before a release, hours'
	@echo 'make weights-check   recompute the figures of the model card (needs the real data)'
	@echo 'make lint   ruff, interrogate   make types   mypy      make docs   the documentation'
	@echo 'PYTHON=...  the interpreter to use (now $(PYTHON), Python $(VERSION))'

$(VENV)/python:
	@echo 'Making $(VENV) ...'
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

# Threads that wait without spinning: beside other programs several times as fast.
demo: $(VENV)/plain.stamp
	OMP_WAIT_POLICY=PASSIVE $(BIN)/torchgeo-sigmae demo --output outputs/demo $(if $(DATA),--data '$(DATA)') $(DEMO_ARGS)

# A worker per core; the networks of tests are too small for several threads each.
test: $(VENV)/tests.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

soak: $(VENV)/tests.stamp
	PYTHONPATH=examples:tests $(BIN)/python -m soak $(SOAK_ARGS)

versions: $(VENV)/tests.stamp
	$(BIN)/python -m soak.versions $(VERSIONS_ARGS)

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
