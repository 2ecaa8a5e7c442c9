# Everything here works in .venv, which the first target that needs it makes. Stamp files in it remember what is
# installed, so a second run starts at once; they are as old as the files that say what to install.
#
#     make demo       60 digits from the shipped model: a picture and its plan, in demo/
#     make test       the suite, but for slow cards            make test ARGS="-k law -n 0"   some of it
#     make lint       ruff and mypy                            make docs                      the site, in site/
#     make bench      the figures of bench/README.md           make catalogue                 the generated pages
#     make clean      away with everything made, .venv too

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
SAID := pyproject.toml constraints.txt
ARGS ?=

.PHONY: help demo test lint format docs catalogue bench clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@sed -n '4,8s/^# *//p' Makefile

# ---------------------------------------------------------------- installs

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "ebbtide needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: .venv/.test says that ebbtide[test] is installed.
$(VENV)/.base $(VENV)/.test $(VENV)/.dev $(VENV)/.docs: $(SAID) | $(PY)
	@echo "installing ebbtide[$(@:$(VENV)/.%=%)] into $(VENV) (the first time takes a minute or two: torch is large)"
	@$(INSTALL) -e '.$(patsubst [base],,[$(@:$(VENV)/.%=%)])'
	@touch $(VENV)/.base $@

# ---------------------------------------------------------------- verbs

demo: demo/digits.png
	@echo "picture  $(CURDIR)/demo/digits.png"
	@echo "plan     $(CURDIR)/demo/digits.plan.yaml    (ebb sample --plan demo/digits.plan.yaml makes the same picture again)"

demo/digits.png: $(VENV)/.base
	@mkdir -p demo
	$(VENV)/bin/ebb sample digits -n 60 --guidance 2 --steps 20 --seed 0 -o $@ --overwrite

# Two workers of one thread each are faster on two cores than one of two, and round the same everywhere. Cards that take
# more than 20 s are run by `ebb check --all`, and here with ARGS="-m slow".
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow" $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --clean
	@echo "site     $(CURDIR)/site/index.html"

catalogue: $(VENV)/.base
	$(PY) -m ebbtide.app.pages

bench: $(VENV)/.base
	@status=0; for script in overhead engine cold; do echo; $(PY) bench/$$script.py || status=1; done; exit $$status

clean:
	rm -rf $(VENV) demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench docs examples -name __pycache__ -type d -prune -exec rm -rf {} +
