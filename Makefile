# Every target sets up .venv by itself, and again when pyproject.toml has changed.
#
#   PYTHON=...        the interpreter (>= 3.12) to set up with; found by itself otherwise
#   PIP_FLAGS=...     passed to pip install; the PIP_* environment variables work too
#   PYTEST_FLAGS=...  passed to pytest, for example PYTEST_FLAGS="-k simulator -x"

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
OUTPUT := demo_output

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-lowest lint format docs bench clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo; sed -n 's/^#   \([A-Z_]*=\)/  \1/p' Makefile

install: $(STAMP) ## set up .venv with everything below needs

# A .venv that still runs is kept; one whose Python is gone or too old is made anew.
$(STAMP): pyproject.toml scripts/find-python
	@if ! $(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
		python=$$(PYTHON="$(PYTHON)" sh scripts/find-python) || exit 1; \
		echo "Setting up $(VENV) with $$python"; \
		"$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing into $(VENV); the first time takes some minutes (torch is large)"
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[dev,docs]'
	@touch $(STAMP)

demo: $(STAMP) ## eight schools and the Grunfeld panel against NUTS, with plots (some minutes)
	@mkdir -p $(OUTPUT)
	MPLBACKEND=Agg $(PY) examples/eight_schools.py
	MPLBACKEND=Agg $(PY) examples/grunfeld.py
	@echo; echo "Written to $(OUTPUT)/:"; ls $(OUTPUT) | sed 's/^/  /'

# Tests that share trained posteriors go to one process, which computes with one thread (tests/conftest.py).
test: $(STAMP) ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_FLAGS)

test-slow: $(STAMP) ## the slow tests alone
	$(PY) -m pytest -m slow $(PYTEST_FLAGS)

# In an environment of its own, made anew each time; deprecations of old versions are no errors.
test-lowest: ## the code of the README and guides, on the lowest versions that are declared
	@python=$$(PYTHON="$(PYTHON)" sh scripts/find-python) || exit 1; "$$python" -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python scripts/lowest-versions > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet $(PIP_FLAGS) -c $(LOWEST)/constraints.txt -e '.[plots,cluster]' pytest
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -W default tests/test_readme.py $(PYTEST_FLAGS)

lint: $(STAMP) ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## put the code into shape: ruff's fixes and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(STAMP) ## the documentation, into docs/_build/html
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: $(STAMP) ## every script in benchmarks/
	@for script in benchmarks/[a-z]*.py; do \
		echo "== $$script"; \
		$(PY) "$$script" || exit 1; \
	done

clean: ## remove what the targets made; .venv stays
	rm -rf $(OUTPUT) docs/_build docs/generated build dist
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -path './$(VENV)*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV) $(LOWEST)
