# Every verb installs what it needs into .venv at its first call, with the versions of
# constraints.txt. `make` alone lists the verbs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# A path entry instead of an import hook: beside the hook, a script in the folder above the checkout
# would import the checkout itself as a package without contents.
EDITABLE := --config-settings editable_mode=compat -e

.DEFAULT_GOAL := help
# The verbs share .venv and the coverage data.
.NOTPARALLEL:
.PHONY: help demo test test-slow test-gpu bench bench-gpu lint type imports docs coverage \
        format clean all-checks

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.has-base  ## run examples/demo.py; what it draws goes to build/
	@mkdir -p build
	$(BIN)/python examples/demo.py

test: $(VENV)/.has-base  ## the fast tests and the docstrings' examples, on the CPU
	$(BIN)/python -m pytest -m "not slow and not gpu" --cov --cov-report= --cov-fail-under=0

test-slow: $(VENV)/.has-base  ## the slow tests, on the CPU
	$(BIN)/python -m pytest -m "slow and not gpu" --cov --cov-append --cov-report= --cov-fail-under=0

# The two verbs for a GPU run the checkout with the interpreter that has the machine's own torch;
# it may lack packages that only the other tests import, so only files with such tests are named.
test-gpu:  ## the tests that need a CUDA device, with $(PYTHON) as it is
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu \
	    $$(grep -rlE --include='test_*.py' 'mark\.gpu\b' tests)

bench-gpu:  ## benchmarks/gpu.py, with $(PYTHON) as it is
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

bench: $(VENV)/.has-bench  ## the benchmarks on one core, about an hour
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/arithmetic.py

lint: $(VENV)/.has-lint  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.has-lint  ## mypy --strict on the package
	$(BIN)/mypy

imports: $(VENV)/.has-lint  ## the layers' contracts
	$(BIN)/lint-imports

docs: $(VENV)/.has-docs  ## build docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

coverage: $(VENV)/.has-base  ## report on what `make test` and `make test-slow` collected
	$(BIN)/coverage report

format: $(VENV)/.has-lint  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

all-checks: test test-slow lint type imports docs coverage  ## all that a change must pass

clean:  ## remove what the verbs made, .venv excepted
	rm -rf build dist *.egg-info docs/_build .coverage .coverage.* .hypothesis \
	    .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# torch comes first and alone: in one resolution with other packages pip may pick another build.
# setuptools is pinned too, so the package is built without pip's own build environment.
$(VENV)/.has-torch: constraints.txt
	@echo "Setting up $(VENV): torch (minutes where it has to be downloaded)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch setuptools
	@touch $@

$(VENV)/.has-base: $(VENV)/.has-torch pyproject.toml
	@echo "Setting up $(VENV): torchimize and what its tests and its demo need"
	@$(PIP) --no-build-isolation $(EDITABLE) '.[test,demo]'
	@touch $@

$(VENV)/.has-%: $(VENV)/.has-base
	@echo "Setting up $(VENV): extra '$*'"
	@$(PIP) --no-build-isolation $(EDITABLE) '.[$*]'
	@touch $@
