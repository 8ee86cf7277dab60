# Everything runs in .venv, which the first target that needs it sets up. `make` alone prints the list.

# The torch that set-up installs, before anything else, so that nothing else chooses one.
# Another one named here, TORCH=..., is remembered in .venv until yet another is named.
DEFAULT_TORCH := torch==2.13.0
CHOSEN_TORCH := $(or $(shell cat .venv/.torch 2>/dev/null),$(DEFAULT_TORCH))
TORCH ?= $(CHOSEN_TORCH)

# The Python that .venv is made from; unless named, the first of these that runs and is new enough.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Installed apart from the other dependencies; pyproject.toml says why.
BETTY := betty-ml==0.2.1

RUN := .venv/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install -q
PINS := requirements/pins.txt
# Written last by set-up: while it is missing, .venv is not to be trusted.
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint site benchmark cuda clean force

help:
	@echo 'make demo       pretrain MetaMAE on the data in this repository, probe it, print a report'
	@echo 'make test       run the tests'
	@echo 'make lint       ruff check, ruff format --check, mypy'
	@echo 'make site       build the pages of docs/ as a site, strictly, into site/; open site/index.html'
	@echo 'make benchmark  run the benchmarks'
	@echo 'make cuda       everything a GPU is wanted for, within MINUTES=28; rows and logs also to $$OUT'
	@echo 'make setup      only set up .venv; the targets above do so by themselves'
	@echo 'make clean      remove .venv, caches and build output'
	@echo
	@echo 'ARGS="..."            more arguments:   make demo ARGS="--steps 10", make test ARGS="-k adapter"'
	@echo 'PYTHON=python3.12     the Python (3.11 or newer) that .venv is made from; after a make clean'
	@echo 'TORCH="torch==2.13.0" another release or build of torch; pip reads PIP_INDEX_URL and the like'

demo: $(READY)
	@$(RUN) examples/metamae_dabs.py $(ARGS)

# A process a core, which begins with neighbouring tests, for these share what they are made from.
test: $(READY)
	@$(RUN) -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# What builds the site is installed when it is first built, and imports nothing of ours.
SITE_READY := .venv/.site
site: $(READY) $(SITE_READY)
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo 'site/index.html is ready.'

$(SITE_READY): pyproject.toml $(PINS) $(READY)
	@echo 'Adding to .venv what builds the site.'
	@$(PIP) -c $(PINS) -c .venv/torch.txt -e '.[docs]'
	@touch $(SITE_READY)

benchmark: $(READY)
	@$(RUN) -m pytest benchmarks/ --benchmark $(ARGS)

MINUTES ?= 28
cuda: $(READY)
	@$(RUN) benchmarks/gpu_errand.py --minutes $(MINUTES) $(ARGS)

setup: $(READY)
	@echo '.venv is ready.'

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that was finished is brought up to date in place. One that was not, or whose Python is gone,
# is made afresh.
$(READY): pyproject.toml $(PINS) Makefile
	@set -e; \
	if [ ! -f $(READY) ] || ! $(RUN) -c '' 2>/dev/null; then \
		python=; \
		for candidate in $(CANDIDATES); do \
			if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
				python=$$candidate; break; \
			fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo 'No Python 3.11 or newer runs here (tried: $(CANDIDATES)).' >&2; \
			echo 'Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3' >&2; \
			exit 1; \
		fi; \
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "$$python cannot make virtual environments: its venv or ensurepip module is missing." >&2; \
			echo 'On Debian and Ubuntu: apt-get install python3-venv. Or name another: make PYTHON=/path/to/python3' >&2; \
			exit 1; \
		fi; \
		echo "Setting up .venv with $$("$$python" --version), once; this takes a few minutes."; \
		rm -rf .venv; \
		"$$python" -m venv .venv; \
	else \
		echo 'Bringing .venv up to date.'; \
	fi; \
	rm -f $(READY); \
	echo '  $(TORCH)'; \
	$(PIP) -c $(PINS) '$(TORCH)'; \
	$(RUN) -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >.venv/torch.txt; \
	echo '  metamae, metalearn and their development tools'; \
	$(PIP) -c $(PINS) -c .venv/torch.txt -e '.[dev]'; \
	echo '  $(BETTY)'; \
	$(PIP) --no-deps --ignore-requires-python '$(BETTY)'; \
	if [ '$(TORCH)' = '$(DEFAULT_TORCH)' ]; then rm -f .venv/.torch; else echo '$(TORCH)' >.venv/.torch; fi; \
	touch $(READY)

# Set up again when another torch is named, or when .venv's Python does not run (any more).
ifneq ($(TORCH),$(CHOSEN_TORCH))
$(READY): force
endif
ifneq ($(shell $(RUN) -c 'print("runs")' 2>/dev/null),runs)
$(READY): force
endif
