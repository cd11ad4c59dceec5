# Every target does its own set-up: Python 3.11 or newer and make are all a machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
GUIDE := $(BIN)/lightning-guide
# Order of the tests of test-portable; and the files of tests that test-portable leaves out.
SEED ?= $(shell od -An -N2 -tu2 /dev/urandom)
WITHOUT_NUMBERS := benchmarks* cli cli_[!t]* commands_[gr]* configs configs_[cp]* \
  configs_edm2_published configs_motion doc* layout packaging playground* report* runs_hub scripts* search_[!s]* search_space utils*

.PHONY: help install demo notebooks study lint test test-portable test-slow test-package docs
.DEFAULT_GOAL := help

help:
	@echo "make install        create $(VENV) and install everything into it"
	@echo "make demo           train, guide and evaluate the 2D fractal; figure and table in runs/fractal2d/report"
	@echo "make notebooks      the notebooks of docs/notebooks.md in JupyterLab"
	@echo "make study          the published 2D recipe over five seeds"
	@echo "make lint           ruff and mypy"
	@echo "make test           lint and the fast tests"
	@echo "make test-portable  numerical tests without vector instructions, on 1 and 3 threads, in random order"
	@echo "make test-slow      the slow tests"
	@echo "make test-package   builds sdist and wheel; the demo, shrunk, from the installed wheel"
	@echo "make docs           the documentation site in build/site"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"lightning-guide needs Python 3.11 or newer, but $(PYTHON) is {v}: name another with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[demo,test]' -c constraints.txt
	@touch $@

demo: $(STAMP)
	$(GUIDE) fit -c configs/fractal2d/unconditional.yaml
	$(GUIDE) fit -c configs/fractal2d/small.yaml
	$(GUIDE) fit -c configs/fractal2d/main.yaml
	$(GUIDE) test -c configs/fractal2d/main.yaml -c configs/fractal2d/report.yaml

# A copy of each notebook; copies that are there, with the reader's changes, are kept.
notebooks: $(STAMP)
	$(BIN)/python -m pip install -q -e '.[notebooks]' -c constraints.txt
	mkdir -p build/notebooks
	for file in $$(grep -l '^# %%' scripts/examples/*.py); do \
	  copy=build/notebooks/$$(basename $$file .py).ipynb; \
	  test -e $$copy || $(BIN)/jupytext --quiet --to ipynb --output $$copy $$file || exit 1; \
	done
	$(BIN)/jupyter lab build/notebooks

study: $(STAMP)
	$(BIN)/python -m scripts.studies.fractal2d.run

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet lightning_guide callbacks datamodules scripts tests
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q -n 2

# Results that depend on the CPU show up without vector instructions and with other numbers of threads.
test-portable: $(STAMP)
	for threads in 1 3; do \
	  TEST_THREADS=$$threads ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
	  $(BIN)/python -m pytest -q -n 2 --shuffle $(SEED) $(WITHOUT_NUMBERS:%=--ignore-glob='tests/test_%.py') || exit 1; \
	done

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

test-package: $(STAMP)
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/test_packaging.py

docs: $(STAMP)
	$(BIN)/python -m pip install -q -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
