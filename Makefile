# Two commands set everything up on a fresh machine: `make demo` and `make test`. Each makes .venv if there is none.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test lint docs constraints clean

demo: $(STAMP)
	$(VENV)/bin/andp demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(STAMP)
	$(VENV)/bin/python scripts/build_reference.py

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Exact versions anew, from an environment made of the ranges in pyproject.toml alone. torch first: its CPU build, where
# there is one, must not be replaced.
constraints:
	rm -rf .cache/constraints && $(PYTHON) -m venv .cache/constraints
	.cache/constraints/bin/python -m pip install --quiet torch==2.13.0
	.cache/constraints/bin/python -m pip install --quiet -e '.[dev,spacy]'
	{ echo "# Exact versions that the tests run with. Made from a fresh environment by: make constraints"; \
	  .cache/constraints/bin/python -m pip freeze --exclude-editable | grep -v '^pip==\|^setuptools==' | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.txt

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
