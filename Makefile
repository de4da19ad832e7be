# The two commands of the README. Both start from nothing but Python, make and the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= rub-out

.PHONY: run test docs soak clean

run: $(VENV)/.installed
	$(BIN)/rub run quick --workers 2 --out $(OUT)
	@echo "The page: $(OUT)/report/index.html"

test: $(VENV)/.tested
	$(BIN)/ruff check src tests benchmarks examples docs/hooks.py
	$(BIN)/ruff format --check src tests benchmarks examples docs/hooks.py
	$(BIN)/codespell
	$(BIN)/mypy
	OMP_NUM_THREADS=1 GIT_PYTHON_REFRESH=quiet $(BIN)/pytest -n 2

docs: $(VENV)/.tested
	$(BIN)/mkdocs build --strict
	@echo "The pages: site/index.html"

soak: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("RUB needs Python 3.11 or newer: make run PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# torchattacks pins an old requests, secml-torch torchvision; what the tests use of them needs neither.
$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt torchattacks secml-torch
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist site
