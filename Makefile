# What a newcomer runs. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors only.
PIP_INSTALL := $(BIN)/python -m pip install -qq --constraint constraints.txt

# A stamp is newer than what it was installed from, so that a second run installs nothing.
PACKAGE_STAMP := $(VENV)/.stamp-package
DEV_STAMP := $(VENV)/.stamp-dev
# What the C++ extension is built from.
SOURCES := CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)

.DEFAULT_GOAL := help
.PHONY: help demo test lint browser format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(PACKAGE_STAMP) ## read a sample receipt with the bundled model, and ask about it
	$(BIN)/ivl read samples/receipt.png
	$(BIN)/ivl ask samples/receipt.png 'Which shop is it?'
	$(BIN)/ivl ask samples/receipt.png 'How much is the total?'
	$(BIN)/ivl ask samples/receipt.png 'Extract as JSON: shop, total.'

test: lint browser ## lint, then run the tests
	$(BIN)/python -m pytest

# The page is tested in Chromium, which comes from the system. Where it cannot be installed, those
# tests are skipped and say so.
browser: ## install Chromium where that is possible without a question
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium fonts-dejavu-core >/dev/null; } || \
		echo 'No Chromium: the tests of the page will be skipped.'

lint: $(DEV_STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(DEV_STAMP) ## mend the layout, and what else ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'constraints.txt is for Python 3.11 or newer: make PYTHON=python3.11 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(PACKAGE_STAMP): pyproject.toml constraints.txt $(SOURCES) | $(BIN)/python
	@echo 'Installing ivl into $(VENV). PyTorch is large: the first time takes a while.'
	$(PIP_INSTALL) --editable .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt $(SOURCES) | $(BIN)/python
	@echo 'Installing ivl and the development tools into $(VENV). The first time takes a while.'
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(PACKAGE_STAMP)
