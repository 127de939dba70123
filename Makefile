# Each target makes the environment it needs from nothing, once; `make clean` removes it.
#
#   make demo     data, training, search and one HTML page with pictures in it
#   make test     lint, then every test
#   make lint     ruff, mypy and the import layers
#
# PYTHON  the interpreter the environment is made with (3.11 or newer)
# TORCH   the torch to install, e.g. TORCH=torch==2.13.0+cu130 for a GPU; say where pip finds it with PIP_EXTRA_INDEX_URL
# JOBS    processes the tests run in

PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PINS := $(VENV)/constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.data
	$(BIN)/voken demo --out runs/demo

test: lint
	$(BIN)/pytest -n $(JOBS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

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
