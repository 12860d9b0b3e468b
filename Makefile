# Needs Python 3.11, git and make; everything else goes into .venv. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3.11
# Test processes side by side, a file each. Tests keep torch at one thread, so one a core is right: make JOBS=8 test
JOBS ?= 2
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --constraint .ci/constraints.txt

# Keeps the checkout itself off sys.path: triton_kernels/ and tests/ are no packages of ours.
export PYTHONSAFEPATH := 1

.PHONY: setup demo test lint bench kernels gpu

setup: .venv/.ready

# torch goes first and alone, so that nothing else can choose its version.
.venv/.ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(INSTALL) torch torchvision
	$(INSTALL) --editable '.[dev,demo,metrics]'
	touch $@

demo: setup
	$(BIN)/vistok demo

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not gpu'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Triton kernels without a GPU, each in a process of its own: in the interpreter, and compiled for three processors.
kernels: setup
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/kernels/interpreter.py
	$(BIN)/python -m pytest -q tests/kernels/ahead_of_time.py

gpu: setup
	$(BIN)/python -m pytest -m gpu

bench: setup
	$(BIN)/vistok bench
