# Every target sets up .venv first (a minute or two, once; torch is large).
# A Python other than the first one found: make PYTHON=/path/to/python3.12 test

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
export PYTHON

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint typecheck pytest wheel docs reliability picture clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(STAMP)  ## the virtual environment .venv with zooport and its tools

$(STAMP): pyproject.toml .ci/venv
	@echo "Setting up $(VENV) (a few gigabytes, once) ..."
	@bash .ci/venv
	@touch $@

demo: $(STAMP)  ## export the embedded demo zoo, verify it, print the table
	@$(BIN)/zooport demo

test: lint typecheck pytest  ## everything that must hold: lint, types, all tests

lint: $(STAMP)  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)  ## mypy, strict
	MYPYPATH=$(VENV)/src $(BIN)/mypy $(VENV)/src/zooport

# One compute thread per process: tests run models side by side with Ray workers. What depends on processes
# and their deadlines has the machine to itself.
pytest: $(STAMP)  ## all tests, slow ones included (pytest -m "not slow" leaves them out)
	@command -v g++ >/dev/null || echo "No g++ here: the C and C++ examples are not tested (apt-get install g++)." >&2
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" -n 2 --dist worksteal
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m alone

wheel: $(STAMP)  ## dist/*.whl
	@rm -rf build
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

docs: $(STAMP)  ## the generated parts of docs/
	$(BIN)/python docs/generate.py

reliability: $(STAMP)  ## the fault matrix of docs/reliability.md, from a run of its tests
	OMP_NUM_THREADS=1 ZOOPORT_RELIABILITY=docs/reliability.json $(BIN)/python -m pytest tests/test_reliability.py
	$(BIN)/python docs/generate.py

picture: $(STAMP)  ## docs/demo.svg, from a real run of the demo
	$(BIN)/python docs/picture.py

clean:  ## remove everything that these targets made
	rm -rf $(VENV) build dist zooport-demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
