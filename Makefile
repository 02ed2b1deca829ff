# `make help` lists the targets. PYTHON chooses the interpreter that .venv is made with.
PYTHON ?= python3
PYTEST_ARGS ?=
# A process a core; PYTEST_PROCESSES= runs the tests one by one.
PYTEST_PROCESSES ?= --numprocesses logical --maxprocesses 8 --dist worksteal
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The package alone, which is all that the demo needs. TORCH=cpu takes PyTorch's CPU build, for machines without a GPU.
BASE := $(VENV)/.installed_package
TORCH ?=
BACKEND := $(if $(TORCH),--torch-backend $(TORCH))
# Where this is set, every process that the tests start compiles PyTorch's modules, which takes longer than the test.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help venv demo docs test foreign clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

venv: $(STAMP)  ## build .venv, or bring it up to date when pyproject.toml has changed

demo: $(BASE)  ## run the whole pipeline on the embedded demo set, into runs/demo
	$(BIN)/tagseg demo --out runs/demo

docs: $(STAMP)  ## build the site from docs/ into build/site; a warning is an error
	$(BIN)/python docs/pages.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/site

test: $(STAMP)  ## check format, lint and types, then run the tests (PYTEST_ARGS="-m 'not slow'" for a quick run)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_PROCESSES) $(PYTEST_ARGS)

foreign: $(STAMP)  ## build the environments of the tools whose readers open our exports in tests/foreign
	$(BIN)/python tests/foreign/environments.py

clean:  ## delete .venv, builds and caches (run folders stay)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs in seconds what takes pip minutes. torch comes as the registry has it, with the torchvision of its build.
$(BASE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "tagseg needs Python 3.11 or newer; PYTHON=$(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python $(BACKEND) -e .
	@touch $(BASE)

$(STAMP): $(BASE)
	$(BIN)/uv pip install --python $(BIN)/python $(BACKEND) -e ".[dev]"
	@touch $(STAMP)
