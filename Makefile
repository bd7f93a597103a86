# Needs make and Python >= 3.11; all else is installed into .venv here. `make demo` is the place to start.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Processes that share the tests.
JOBS ?= 2

# OpenMP threads that wait by spinning starve each other where several processes share the cores.
export OMP_WAIT_POLICY := PASSIVE

# Stamps are written last, so an interrupted install is never taken for a finished one.
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

# A venv knows its own path (scripts, editable install): one that was moved, or whose Python is gone,
# is built anew. `pwd -P` is what the stamp holds.
usable := $(shell $(BIN)/python -c "" 2>/dev/null && test "$$(cat $(MADE) 2>/dev/null)" = "$$(pwd -P)" && echo yes)

.PHONY: help demo test test-slow lint types format clean rebuild

help:
	@echo "make demo       distil the embedded digits dataset into runs/digits"
	@echo "make test       run the tests; make test-slow runs the slow ones"
	@echo "make lint       check style; make format mends it; make types checks types"
	@echo "make clean      remove .venv, caches and build output; runs/ stays"

demo: $(INSTALLED)
	$(BIN)/scdd distill --out runs/digits

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED_DEV)
	$(BIN)/mypy

$(MADE): $(if $(usable),,rebuild)
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: no '$(PYTHON)' was found; install Python 3.11 or newer, or name one: make PYTHON=python3.11" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1), but scdd needs Python 3.11 or newer; name one: make PYTHON=python3.11" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	@pwd -P > $@

$(INSTALLED): pyproject.toml $(MADE)
	$(BIN)/python -m pip install -e .
	@touch $@

# After the plain install, never beside it: `make -j demo test` must not run two pips in one venv.
$(INSTALLED_DEV): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find scdd apps benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
