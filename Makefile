# Every target sets up what it needs under .venv, so each works alone on a fresh clone.
# `make test PYTHON=python3.12` names an interpreter; each version has its own environment.

# Candidates in order of preference; the first that is 3.11 or newer and can make a virtual
# environment is used. A name on PATH is not enough: it may be a shim of an absent version.
PYTHON ?= python3.11 python3.12 python3.13 python3
PROBE := import ensurepip, sys; assert sys.version_info >= (3, 11); print("%d.%d" % sys.version_info[:2])
FOUND := $(shell for python in $(PYTHON); do \
	version=$$($$python -c '$(PROBE)' 2>/dev/null) && echo $$python $$version && break; done)

VENV := .venv/py$(lastword $(FOUND))
PIP := $(VENV)/bin/pip --disable-pip-version-check
# On Linux only a build marked +cpu is taken: PyPI's own brings several GB of CUDA libraries.
TORCH := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)
# The TPU compiler, which tests use without a TPU, in the release that this JAX wants. It lies beside
# the packages: JAX, if it found it, would look for a TPU whenever it starts.
LIBTPU := import importlib.metadata as m; \
	print(*(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))

.PHONY: help demo docs test test-all lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Train and measure a small model on this machine, and ask it; about 6 minutes
	$(VENV)/bin/python -m msa_jax.train --config=configs/tiny.py
	$(VENV)/bin/python examples/living_memory.py --run=runs/tiny

docs: $(VENV)/.installed-docs ## Build the documentation into site/
	$(VENV)/bin/mkdocs build --strict

test: lint ## Lint, then run the tests that are not marked slow
	$(VENV)/bin/python -m pytest -q -n 2

test-all: lint $(VENV)/.installed-docs ## Lint, then run every test
	$(VENV)/bin/python -m pytest -q -n 2 -m ""

lint: $(VENV)/.installed-test ## Check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-test ## Apply the formatting
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## Remove environments, build products and caches
	rm -rf .venv build dist site *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: setup.py
	@test -n "$(FOUND)" || { echo "msa_jax needs Python 3.11 or newer with its venv module; none of\
	 these is one: $(PYTHON). Install it, or name yours with PYTHON=/path/to/python." >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(firstword $(FOUND)) -m venv $(VENV)
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Adding the documentation tools to $(VENV)"
	@$(PIP) install --quiet --editable '.[docs]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Adding the test tools to $(VENV)"
	@$(PIP) install --quiet --editable '.[test]'
	@$(PIP) install --quiet '$(TORCH)' || echo "No CPU build of PyTorch in the package index: the\
	 parity tests against transformers will be skipped. CONTRIBUTING.md says how to add it."
	@$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/libtpu \
		"$$($(VENV)/bin/python -c '$(LIBTPU)')" || echo "No libtpu for this machine: the tests that\
	 compile for TPU will be skipped."
	@touch $@
