# make demo   train a stacked attention model and its latent-concat variant, write a report
# make test   the whole test suite
# make lint   ruff and mypy
# Each sets up .venv first, if need be: Python 3.11 or later and make are all that is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SETUP := .venv/.installed

.PHONY: demo test lint format setup clean
.DEFAULT_GOAL := demo

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(SETUP)
	$(BIN)/python -m analyses.depth --quick --out demo

test: $(SETUP)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
