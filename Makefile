# What a newcomer runs. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
# Twice quiet: nothing but errors, and those say little. What happened is in the log.
PIP_INSTALL := $(BIN)/python -m pip install -qq --log $(LOG) --constraint constraints.txt

# A stamp is newer than what it was installed from, so that a second run installs nothing. Its name
# says what was missing for the C++ kernels: when that has come, they are built.
MISSING := $(shell $(PYTHON) src/ivl/toolchain.py 2>/dev/null)
PACKAGE_STAMP := $(VENV)/.stamp-package-without-$(MISSING)
DEV_STAMP := $(VENV)/.stamp-dev-without-$(MISSING)
# What the C++ extension is built from.
SOURCES := CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs browser format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(PACKAGE_STAMP) ## read a sample receipt with the bundled model, ask about it, read a PDF
	$(BIN)/ivl read samples/receipt.png
	$(BIN)/ivl ask -q samples/receipt.png 'Which shop is it?'
	$(BIN)/ivl ask -q samples/receipt.png 'How much is the total?'
	$(BIN)/ivl ask -q samples/receipt.png 'Extract as JSON: shop, total.'
	$(BIN)/ivl read samples/two-pages.pdf

test: lint docs browser ## lint, build the documentation, then run the tests
	$(BIN)/python -m pytest

# The page is tested in Chromium, by a driver that needs libatomic; both come from the system. Where
# they cannot be installed, those tests are skipped and say so.
browser: $(DEV_STAMP) ## install Chromium where that is possible without a question
	@{ command -v chromium || command -v chromium-browser; } >/dev/null && \
		$(BIN)/playwright --version >/dev/null 2>&1 || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium libatomic1 fonts-dejavu-core >/dev/null 2>&1; } || \
		echo 'No Chromium: the tests of the page will be skipped.'

lint: $(DEV_STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# A broken link, or a public name that the reference lacks, ends it.
docs: $(DEV_STAMP) ## the documentation and the API reference as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Open build/site/index.html, or run: $(BIN)/mkdocs serve'

format: $(DEV_STAMP) ## fix the layout, and what else ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# $(1): what to install. When that fails, the end of the log says why.
define install
@rm -f $(LOG); $(PIP_INSTALL) --editable $(1) || { \
		cut -d' ' -f2- $(LOG) | grep -v '^ *$$' | tail -n 40 >&2; \
		echo 'The installation failed. All of its log: $(LOG)' >&2; exit 1; }
endef

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'constraints.txt is for Python 3.11 or newer: make PYTHON=python3.11 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(PACKAGE_STAMP): pyproject.toml constraints.txt $(SOURCES) | $(BIN)/python
	@echo 'Installing ivl into $(VENV). PyTorch is large: the first time takes a while.'
	$(call install,.)
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt $(SOURCES) | $(BIN)/python
	@echo 'Installing ivl and the development tools into $(VENV). The first time takes a while.'
	$(call install,'.[dev]')
	@touch $@ $(PACKAGE_STAMP)
