# make demo   a labelled dataset and a page about a real model's entropy neurons
# make test   ruff, the type checker, and every test
# make quick  the tests that need no server, no browser and no real model: a few minutes
# Each sets up what it needs in .venv; PYTHON chooses the interpreter.
# WORKERS processes share the tests, a file each at a time: one server, one browser, many models.
PYTHON ?= python3
WORKERS ?= 2
PYTEST := .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test quick lint clean

demo: $(READY)
	$(BIN)/confreg run entropy_neurons --activations --overwrite --out runs/demo.zarr
	$(BIN)/confreg report runs/demo.zarr -o runs/demo.html

test: $(READY) lint
	$(PYTEST)

quick: $(READY)
	$(PYTEST) -m "not slow and not remote and not model"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "confreg needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs dist build src/*.egg-info
