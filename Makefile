# `make` lists the verbs. Everything runs in .venv, which the first verb sets up.
SHELL := /bin/sh
PYTHON ?= python3
PROFILE ?= digits
ARGS ?=
BIN := .venv/bin
# Files whose tests take less than a minute together.
FAST := $(patsubst %,tests/test_%.py,architecture data image_files losses multiple_comparisons packaging profiles progress)

.PHONY: help reproduce lab check test style bench clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

reproduce: .venv/.ready ## train all systems, execute the notebooks, draw the figures: PROFILE=digits, ARGS= further options
	$(BIN)/python -m paperlib reproduce --profile $(PROFILE) $(ARGS)

# The kernel of .venv takes precedence over one of the same name in the user's folders.
lab: .venv/.ready ## open the notebooks in JupyterLab
	PATH="$(CURDIR)/$(BIN):$$PATH" JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m jupyterlab notebooks/

check: style ## check style, types and imports, then run the fast tests: about a minute
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow and not browser" $(FAST)

test: style ## check style, types and imports, then run all tests: ARGS= further pytest options
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

style: .venv/.ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

# Compares the attacks with those of other libraries (tests/benchmarks/run.py). Run nothing else at the same time.
bench: .venv-bench/.ready ## measure speed against other libraries: ARGS= sections and options, --help lists them
	PYTHONPATH="$(CURDIR)" .venv-bench/bin/python tests/benchmarks/run.py $(ARGS)

# Computed results (data/store) and published records (data/published, figures) stay.
clean: ## remove build outputs and tool caches
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard paperlib tests notebooks) \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# .venv/.creating marks an unfinished first installation. An interrupted pip can leave an incomplete package, so the next
# run then creates .venv again. The stamp .venv/.ready is written last.
.venv/.ready: pyproject.toml requirements.lock
	@if [ -e .venv/.creating ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "error: '$(PYTHON)' is not Python 3.11 or newer; name one that is, as in: make PYTHON=python3.12" >&2; exit 1; }; \
	  echo "setting up .venv: about 2 minutes on a fast connection, 6.4 GB on Linux (PyTorch brings CUDA)"; \
	  $(PYTHON) -m venv --clear .venv && touch .venv/.creating || exit 1; \
	else \
	  echo "bringing .venv up to date with pyproject.toml and requirements.lock"; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[notebooks,test]"
	@rm -f .venv/.creating
	@touch $@

# A separate environment for the other libraries: it can import from .venv and does not change it.
.venv-bench/.ready: .venv/.ready tests/benchmarks/requirements.txt
	@echo "setting up .venv-bench: other libraries' attacks, on top of .venv"
	@$(BIN)/python -m venv --clear .venv-bench
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/benchmarks/requirements.txt
	@touch $@
