# Fresh machine: `make demo`, `make test`. Both work twice in a row, and offline once installed:
# pip runs only when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= .demo
DATA ?= ../shared/data
BENCH ?= .bench
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# A process a core, each with one thread: threads that wait for each other's cores cost most of the time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
PACKAGING := pyproject.toml constraints.txt
# The sources that are checked; a plain list, so that a virtual environment is never walked.
SOURCES := cart_qdrant cli plugins tests benchmarks docs
ROOTS := cart_qdrant cli/cart_qdrant_cli plugins/langchain/cart_qdrant_langchain \
	plugins/llamaindex/cart_qdrant_llamaindex plugins/mcp/cart_qdrant_mcp \
	plugins/haystack/cart_qdrant_haystack plugins/dspy/cart_qdrant_dspy

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean

help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(PACKAGING) | $(BIN)/python
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.installed-test: $(PACKAGING) | $(BIN)/python
	$(PIP) -e ".[all,dev,docs]"
	@touch $@ $(VENV)/.installed-demo

demo: $(VENV)/.installed-demo ## Ingest, train and search real photographs and clips.
	$(BIN)/cartq demo --folder $(DEMO)

lint: $(VENV)/.installed-test ## Check style and types.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(ROOTS)

test: lint ## Check style and types, then run the tests.
	$(PYTEST)

test-fast: $(VENV)/.installed-test ## Run the tests that take no more than a few seconds each.
	$(PYTEST) -q -m "not slow"

test-versions: ## Run short jobs on the newest Python and packages, and on the oldest packages.
	$(PYTHON) .ci/versions.py newest
	$(PYTHON) .ci/versions.py oldest

docs: $(VENV)/.installed-test ## Write the generated pages and figures again, build the site into site/.
	@set -e; for tool in cli_reference pipeline rooms; do $(BIN)/python docs/tools/$$tool.py; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-test ## Run the benchmarks of docs/benchmarks.md, about an hour.
	@test -d $(DATA) || { echo "no media at $(DATA): make bench DATA=FOLDER" >&2; exit 2; }
	$(BIN)/python benchmarks/ingest.py $(DATA)/photos --again
	@set -e; for protocol in new captioned videos; do echo "== $$protocol"; \
		$(BIN)/python benchmarks/quality.py $$protocol $(DATA) --work $(BENCH)/$$protocol; done
	$(BIN)/python benchmarks/scale.py $(BENCH)/new/.cartq $(BENCH)/new/queries-dev.jsonl
	$(BIN)/python benchmarks/trie.py --sizes 10000 1000000
	$(PIP) faiss-cpu
	$(BIN)/python benchmarks/latency.py $(BENCH)/new/.cartq $(BENCH)/new/queries-dev.jsonl --items 1000 100000
	@set -e; for what in ingest refit captions train; do echo "== kill -9, $$what"; \
		$(BIN)/python -m benchmarks.crash $$what --times 10; done

clean: ## Remove what the targets made, the virtual environment too.
	rm -rf $(VENV) $(DEMO) $(BENCH) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
