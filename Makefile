# The two commands of this project: `make search` runs the main job end to end, `make test` runs the checks.
# Both create the environment .venv first; PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: search test docs format court clean

search: $(VENV)/installed
	$(BIN)/nas search quickstart

test: $(VENV)/installed-dev
	BIN=$(BIN)/ ./check.sh

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs docs/_build
	@echo "open docs/_build/index.html"

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# What is shown of scores, anew from the stored truth: hours where trainings are among those that are lacking.
court: $(VENV)/installed-dev
	$(BIN)/python benchmarks/truth/scores.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python notebooks/store.py notebooks/which_score_ranks.ipynb

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
