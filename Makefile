# Two commands do everything: `make demo` and `make test`. Both start at once when nothing changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint types tests clean

demo: $(VENV)/.installed
	$(BIN)/diffkit demo

# Types are checked beside the first tests: mypy takes half a minute of one core.
test: lint
	$(MAKE) -j2 types tests

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# A process for each core (four at most: each takes some 2 GB), each with one thread: a second gains small networks little.
tests: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit("diffkit needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch and torchvision in one command: builds of two different indexes do not fit together.
$(VENV)/.torch: $(VENV)/.created
	$(PIP) install 'torch>=2.10' torchvision
	touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e '.[test]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
