# One task runner. Every target makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint check format docs train clean

demo: $(VENV)/.installed ## Draw, ingest, search and rerank a thousand pictures
	$(BIN)/edje-qdrant demo

test: $(VENV)/.dev ## Run the whole test suite
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev ## Run what takes longer
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev ## Check format, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test lint ## Run what CI runs

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## Build the site into site/
	$(BIN)/mkdocs build --strict

train: $(VENV)/.dev ## Train the bundled model again (about an hour on 2 cores)
	$(BIN)/edje-qdrant train --recipe demo --out runs/demo/model --work runs/demo

clean:
	rm -rf $(VENV) edje-demo site dist

# torch first and alone, so that the pinned build is the one that everything else finds.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the package into $(VENV)"
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@
