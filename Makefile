# Everything a developer does, by name. `make` alone prints the list.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Tests wait more than they work.
SIDE_BY_SIDE := --numprocesses 3 --dist worksteal

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo check quick test soak machine lint format wheel compiled programs bench clean

help:  ## print this list
	@sed -n 's/^\([a-z]*\):.*##/\1/p' $(MAKEFILE_LIST) | awk '{ name = $$1; $$1 = ""; printf "  make %-10s%s\n", name, $$0 }'

demo: $(VENV)/.installed-demo  ## set up what the proxy needs and run it, in the foreground, on an embedded demo
	$(RUN)/rpxy-l4 demo

# The tests come last, so that their summary is the last line of the whole run.
check: programs lint wheel compiled machine test  ## set up everything, then format, lint, types, the wheel, and all tests

quick: $(VENV)/.installed-dev  ## the fast tests only: under a minute
	$(RUN)/pytest $(SIDE_BY_SIDE) -m "not slow and not e2e and not alone"

test: $(VENV)/.installed-dev programs  ## all tests
	$(RUN)/pytest -m alone
	$(RUN)/pytest $(SIDE_BY_SIDE) -m "not alone"

soak: $(VENV)/.installed-dev programs  ## random faults under real traffic for three minutes
	RPXY_L4_SOAK_SECONDS=180 $(RUN)/pytest tests/chaos/test_soak.py

machine: $(VENV)/.installed-dev programs  ## the kernel path in a virtual machine with Debian's own kernel
	scripts/make-machine
	RPXY_L4_MACHINES=debian $(RUN)/pytest tests/machine

lint: $(VENV)/.installed-dev  ## format, lint and types, changing nothing
	$(RUN)/ruff format --check
	$(RUN)/ruff check
	$(RUN)/mypy

format: $(VENV)/.installed-dev  ## write the code in its one format, and mend what ruff can mend
	$(RUN)/ruff format
	$(RUN)/ruff check --fix

wheel: $(VENV)/.installed-dev  ## build the wheel and try it in a clean environment
	scripts/try-wheel $(RUN)/python

compiled: $(VENV)/.installed-dev programs  ## compile the data path in a copy, and run the tests of it there
	scripts/try-compiled $(RUN)/python

programs:  ## install the Debian packages that the end-to-end tests drive, where any is missing
	scripts/install-test-programs

bench: $(VENV)/.installed-dev  ## measure beside other proxies, in under ten minutes; bench/install-peers gets them
	$(RUN)/python -m bench

clean:  ## remove what was made here, the environment included
	rm -rf $(VENV) build dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed-demo: pyproject.toml
	scripts/make-environment $(PYTHON) $(VENV) demo
	@touch $@

# What the tests need contains what the demo needs.
$(VENV)/.installed-dev: pyproject.toml
	scripts/make-environment $(PYTHON) $(VENV) dev
	@touch $@ $(VENV)/.installed-demo
