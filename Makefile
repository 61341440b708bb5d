# Everything is installed into .venv from pyproject.toml, at the versions of constraints.txt.
# PYTHON is the interpreter that makes .venv: 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: concentration test lint bench docs clean
.DELETE_ON_ERROR:

concentration: .venv/lab
	$(BIN)/python -m marginlab.study concentration $(ARGS)

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy

bench: .venv/bench
	for file in $$(ls benchmarks/[a-z]*.py | grep -v cuda.py); do echo $$file; $(BIN)/python $$file || exit 1; done

# NOTEBOOKS=off shows the notebooks without running them
docs: .venv/docs
	NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m sphinx -W --keep-going $(ARGS) docs build/docs

clean:
	rm -rf .venv build dist

# A stamp file names what was installed; it is older than pyproject.toml when that has changed.
.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "marginlab needs Python 3.11 or later; '$(PYTHON)' is older. Say: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/%: pyproject.toml constraints.txt | .venv/pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	@touch $@
