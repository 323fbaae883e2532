# Two commands set everything up, each making what it needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
EXTRAS := dev,docs,parquet,onnx,raw
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test pytest test-slow test-lowest fuzz check docs dist publish format clean

$(BIN)/deepcluster: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(BIN)/pytest: $(BIN)/deepcluster
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

# By uv, because pip always takes the newest versions; by Python 3.11, because the lowest versions have no wheels for newer ones.
$(LOWEST)/bin/pytest: pyproject.toml
	python3.11 -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(BIN)/deepcluster  ## cluster 1,797 real handwritten digits (no download)
	$(BIN)/deepcluster fit sklearn:digits -k 10 --labels folders --rounds 10 -o runs/digits --overwrite

test: $(BIN)/pytest  ## style, types, the site, all tests but the slow ones
	$(MAKE) --jobs=2 check docs pytest

pytest: $(BIN)/pytest
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --dist loadfile

test-slow: $(BIN)/pytest  ## the tests that take minutes
	$(BIN)/pytest -m slow

test-lowest: $(LOWEST)/bin/pytest  ## the fast tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest -m "not slow" -n auto --dist loadfile

SECONDS_EACH ?= 300
fuzz: $(BIN)/pytest  ## damaged images and models, for SECONDS_EACH=300 each (with `pip install atheris` it sees the code)
	$(BIN)/python -m fuzz.decode --seconds $(SECONDS_EACH)
	$(BIN)/python -m fuzz.model --seconds $(SECONDS_EACH)

check: $(BIN)/pytest  ## style, layers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: $(BIN)/pytest  ## the site, docs/_build/index.html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -E -q -c docs . docs/_build

dist: $(BIN)/pytest  ## the files for PyPI, checked
	rm -rf dist
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

publish: dist  ## upload them, with an account at PyPI
	$(BIN)/python -m twine upload dist/*

format: $(BIN)/pytest
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
