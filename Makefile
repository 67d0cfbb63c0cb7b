# One task runner. Every target makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RESULTS := docs/results
SITE ?= site
ONE := OMP_NUM_THREADS=1
SIZES ?= 10000 100000
OPEN_CLIP ?= .venv-open-clip
OPEN_CLIP_PIP := $(OPEN_CLIP)/bin/python -m pip install --quiet --disable-pip-version-check
LOWEST ?= .venv-lowest
NEWEST ?= .venv-newest
UV_VENV ?= .venv-uv
UV_PIP := $(UV_VENV)/bin/uv pip install --quiet
# tests/test_docs.py compares with what the pinned versions print. Old and new packages warn of each
# other; warnings are errors with the versions of constraints.txt.
VERSIONS_PYTEST := -m pytest -o filterwarnings=default --ignore tests/test_docs.py
TESTS ?=
WORKERS ?= 2
SIDE_BY_SIDE := --numprocesses $(WORKERS) --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Tests start hundreds of processes, each of which would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-all test-browser test-open-clip test-lowest test-newest lint check format docs train bench clean

demo: $(VENV)/.installed ## Draw, ingest, search and rerank a thousand pictures
	$(BIN)/edje-qdrant demo

install: $(VENV)/.web ## Install the command, the page and what reads photographs of phones
	@echo "installed; now: source $(BIN)/activate"

test: $(VENV)/.dev ## Run the tests, without those that take long
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(VENV)/.dev test-open-clip ## Run all tests that this machine can run
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --hypothesis-profile thorough -m "not open_clip and not network"

test-browser: $(VENV)/.dev $(VENV)/.docs ## Run the tests of the page, the site and pixels in Chromium, which EDJE_CHROMIUM names
	$(BIN)/python -m pytest -m browser

test-open-clip: $(OPEN_CLIP)/.installed ## Run the tests of the open_clip encoder
	PYTHONPATH=tests/open_clip_environment $(OPEN_CLIP)/bin/python -m pytest -p torchvision_operators \
	  -m open_clip tests/encoders/test_open_clip.py

test-lowest: $(LOWEST)/.installed ## Run the suite with the lowest versions allowed (TESTS: some of it)
	$(ONE) $(LOWEST)/bin/python $(VERSIONS_PYTEST) $(SIDE_BY_SIDE) $(TESTS)

test-newest: $(NEWEST)/.installed ## Run the suite with the newest versions (TESTS: some of it)
	$(ONE) $(NEWEST)/bin/python $(VERSIONS_PYTEST) $(SIDE_BY_SIDE) $(TESTS)

lint: $(VENV)/.dev ## Check format, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml examples/docker-compose*.yml

check: test lint ## Run what CI runs

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable keeps the theme's advertisement of another builder out of the output.
docs: $(VENV)/.docs ## Build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(SITE)

train: $(VENV)/.dev ## Train the bundled model again (about 1.5 hours on 2 cores)
	$(BIN)/edje-qdrant train --recipe demo --out runs/demo/model --work runs/demo

bench: $(VENV)/.dev ## Measure every speed that is aimed at (quiet machine, under 15 minutes)
	mkdir -p runs/bench
	$(BIN)/python benchmarks/startup.py --out $(RESULTS)/startup.json
	$(ONE) $(BIN)/python benchmarks/search_overhead.py --out $(RESULTS)/search_overhead.json
	$(ONE) $(BIN)/python benchmarks/concurrency.py --out $(RESULTS)/concurrency.json
	$(BIN)/python benchmarks/ingest_rate.py --out $(RESULTS)/ingest_rate_base.json
	$(ONE) $(BIN)/python benchmarks/ingest_rate.py --model demo --pictures 256 --batch-size 32 \
	  --out $(RESULTS)/ingest_rate_demo.json
	$(BIN)/python benchmarks/token_fetch.py --out runs/bench/token_fetch.json
	$(ONE) $(BIN)/python benchmarks/growth.py --sizes $(SIZES) --keep runs/growth \
	  --out $(RESULTS)/growth.json --plot $(RESULTS)/growth.png
	$(BIN)/python benchmarks/joint_encoder.py --out $(RESULTS)/joint_encoder.json
	$(BIN)/python docs/write_benchmarks.py
	$(BIN)/python docs/write_scaling.py
	$(BIN)/python docs/write_planning_constants.py
	$(BIN)/python docs/write_targets.py

clean:
	rm -rf $(VENV) $(OPEN_CLIP) $(LOWEST) $(NEWEST) $(UV_VENV) edje-demo site dist

# torch first and alone, so that the pinned build is the one that everything else finds.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the package into $(VENV)"
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[torch]'
	touch $@

$(VENV)/.web: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[web]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

# open_clip has an environment of its own: it needs torchvision, whose registry wheels are built for
# CUDA and break `import transformers` beside a CPU build of torch. --no-deps keeps the pinned torch;
# tests/open_clip_environment declares the operators such a wheel misses there.
$(OPEN_CLIP)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(OPEN_CLIP)
	@echo "installing torch, the package and open_clip into $(OPEN_CLIP)"
	$(OPEN_CLIP_PIP) --constraint constraints.txt torch
	$(OPEN_CLIP_PIP) --constraint constraints.txt --editable '.[torch]' hypothesis pytest pytest-timeout regex
	$(OPEN_CLIP_PIP) --no-deps torchvision==0.28.0 open_clip_torch==3.3.0 timm==1.0.31
	touch $@

$(UV_VENV)/.installed:
	$(PYTHON) -m venv $(UV_VENV)
	$(UV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	touch $@

# torch as everywhere: pip installs the pinned build, and uv keeps it.
$(LOWEST)/.installed: RESOLUTION := lowest-direct
$(NEWEST)/.installed: RESOLUTION := highest
$(LOWEST)/.installed $(NEWEST)/.installed: pyproject.toml constraints.txt Makefile $(UV_VENV)/.installed
	$(PYTHON) -m venv --clear $(@D)
	@echo "installing torch and the package with the $(RESOLUTION) versions into $(@D)"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	grep '^torch==' constraints.txt > $(@D)/torch.txt
	$(UV_PIP) --python $(@D)/bin/python --resolution $(RESOLUTION) --constraint $(@D)/torch.txt \
	  --editable '.[dev]'
	touch $@
