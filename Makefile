# Everything a developer runs, under the names that CI uses too. `make` alone lists the targets.
#
# Each target that needs the virtual environment depends on a stamp inside it. The stamp's name is a checksum of what the
# environment was made from, so an edit of the lock file or of pyproject.toml asks for a new stamp, and a checkout that
# only touches times does not. The stamp is written last: an interrupted setup leaves none and is begun again.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
SEEDS ?= 1000
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
SEED ?= 1
# Newest versions by default; `make lock LOCK_ARGS=` keeps every pin that still fits pyproject.toml.
LOCK_ARGS ?= --upgrade
ARGS ?=

LOCK := requirements-dev.lock
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(shell { pwd; cat $(LOCK) pyproject.toml; } 2>/dev/null | cksum | cut -d' ' -f1)
# Scripts and the editable install hold absolute paths, so an environment belongs to one folder and one Python.
ORIGIN := $(VENV)/.made-by

# Not every shell expands a tilde after `PYTHON=`.
PYTHON_PATH := $(patsubst ~/%,$(HOME)/%,$(PYTHON))
IDENTITY := import os, sys; print("%s Python %d.%d %s" % ((os.getcwd(),) + sys.version_info[:2] + (sys.base_prefix,)))

# With nothing asked for, an environment that works is kept whatever python3 means today, and where python3 will not do,
# a newer one beside it will. A PYTHON that was asked for is used or refused, and replaces an environment of another.
ifeq ($(origin PYTHON),file)
CANDIDATES := python3 python3.13 python3.12 python3.11
else
CANDIDATES := "$(PYTHON_PATH)"
ifneq ($(shell "$(PYTHON_PATH)" -c '$(IDENTITY)' 2>/dev/null),$(shell cat $(ORIGIN) 2>/dev/null))
$(STAMP): other-python
endif
endif

# Runs on any Python back to 2.7. Prints the interpreter to build from, or what is wrong with this one and what to do.
# Inside a virtual environment that is the interpreter underneath, since .venv itself is about to be removed.
define CHECK_PYTHON
import sys
name, goal = sys.argv[1:3]
version = sys.version.split()[0]
retry = "run: make PYTHON=python3.12 " + goal
problem = None
if sys.version_info < (3, 11):
    problem = "dspool needs Python 3.11 or newer; %s is %s. Install one and %s" % (name, version, retry)
elif sys.version_info >= (3, 15):
    problem = "dspool's dependencies are not ready for Python %s (%s) yet. Install 3.11 to 3.14 and %s" % (version, name, retry)
else:
    try:
        import ensurepip, venv
    except ImportError:
        problem = (
            "%s (Python %s) has no venv module, or none that can install pip.\n"
            "On Debian or Ubuntu: apt install python%d.%d-venv (or python3-venv), then run make %s again.\n"
            "Or name another Python: make PYTHON=python3.12 %s"
        ) % ((name, version) + tuple(sys.version_info[:2]) + (goal, goal))
print(problem or getattr(sys, "_base_executable", None) or sys.executable)
sys.exit(1 if problem else 0)
endef
export CHECK_PYTHON

# Sets $$python, or says what the first candidate lacks and fails.
define FIND_PYTHON
python=; problem=; \
for candidate in $(CANDIDATES); do \
  if ! command -v "$$candidate" >/dev/null 2>&1; then \
    answer="There is no $$candidate here. Install Python 3.11 or newer and run: make PYTHON=python3.12 $(GOAL)"; \
  elif answer=$$("$$candidate" -c "$$CHECK_PYTHON" "$$candidate" "$(GOAL)" 2>/dev/null); then \
    python=$$answer; break; \
  elif [ -z "$$answer" ]; then \
    answer="$$candidate does not start. Install Python 3.11 or newer and run: make PYTHON=python3.12 $(GOAL)"; \
  fi; \
  problem=$${problem:-$$answer}; \
done; \
if [ -z "$$python" ]; then echo "$$problem" >&2; exit 1; fi
endef
GOAL := $(firstword $(MAKECMDGOALS) setup)

# Twice quiet: errors are still shown, remarks about this machine's pip settings are not.
PIP := $(PY) -m pip --disable-pip-version-check --no-input -qq
PIP_FAILED = { echo "dspool: pip could not install $(1); its own message is above. Put that right (no network?) and run make $(GOAL) again." >&2; exit 1; }

.PHONY: help
help: ## list the targets
	@echo "Targets (each makes .venv by itself when it needs it):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=python3.12 (what .venv is made of), ARGS=\"...\" (passed on), SEEDS=1000, SEED=1, JOBS=$(JOBS)."
	@echo "The benchmarks make .venv-bench for the peers they measure against; one script: make bench ONLY=calls,"
	@echo "its options: make bench ONLY=calls ARGS=--help. How to read them: docs/how-to/benchmark.md."

.PHONY: setup
setup: $(STAMP) ## make .venv: what the lock file names, with hash checking, and dspool itself

.PHONY: other-python
other-python:

# An environment from here and from the same Python is brought up to date in place; any other is made anew. The lock file
# is complete, so pip need not work out dependencies (a fifth of the time); `pip check` sees that it still is. It only
# warns, because the cure, `make lock`, needs the environment too.
$(STAMP):
	@set -e; \
	if ls $(VENV)/.installed-* >/dev/null 2>&1 && [ -z "$(filter other-python,$^)" ] \
	  && [ "$$($(PY) -c '$(IDENTITY)' 2>/dev/null)" = "$$(cat $(ORIGIN) 2>/dev/null)" ]; then \
	  echo "dspool: bringing .venv up to date with $(LOCK) and pyproject.toml"; \
	  rm -f $(VENV)/.installed-*; \
	else \
	  $(FIND_PYTHON); \
	  echo "dspool: making .venv with $$("$$python" --version 2>&1)"; \
	  rm -rf $(VENV); \
	  "$$python" -m venv $(VENV) || { echo "dspool: $$python could not make a virtual environment; its own message is above." >&2; exit 1; }; \
	  $(PY) -c '$(IDENTITY)' > $(ORIGIN); \
	  echo "dspool: installing $$(grep -c '^[a-zA-Z]' $(LOCK)) packages from $(LOCK); the first time takes a minute or two"; \
	fi
	@$(PIP) install --require-hashes --no-deps -r $(LOCK) || $(call PIP_FAILED,the packages in $(LOCK))
	@echo "dspool: installing dspool itself, as an editable install"
	@$(PIP) install --no-deps --no-build-isolation -e . || $(call PIP_FAILED,dspool itself)
	@$(PY) -m pip check >/dev/null || { $(PY) -m pip check; echo "dspool: $(LOCK) does not fit pyproject.toml any more: run make lock" >&2; }
	@touch $@
	@echo "dspool: .venv is ready"

.PHONY: demo
demo: $(STAMP) ## the main job on four workers, one of which is killed half-way (ARGS are dspool demo's)
	@$(VENV)/bin/dspool demo $(ARGS)

.PHONY: test
test: $(STAMP) ## every test, JOBS files at a time: two more than there are cores (ARGS are pytest's, as in ARGS="-k lease -x")
	@$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# The pages of docs/ are not ruff's: build_reference.py writes them.
SOURCES := $(wildcard dspool tests benchmarks examples docs/*.py)

.PHONY: lint
lint: $(STAMP) ## ruff: rules and layout, changing nothing
	@$(PY) -m ruff check $(SOURCES)
	@$(PY) -m ruff format --check $(SOURCES)

.PHONY: fmt
fmt: $(STAMP) ## ruff: put right what it can
	@$(PY) -m ruff check --fix $(SOURCES)
	@$(PY) -m ruff format $(SOURCES)

.PHONY: type
type: $(STAMP) ## mypy, strict, over all of it
	@$(PY) -m mypy $(SOURCES)

.PHONY: sim
sim: $(STAMP) ## the simulator over SEEDS seeds, each run twice with equal traces
	@$(PY) -m dspool.testing.simulator --seeds $(SEEDS) $(ARGS)

# Both print one table and fail when anything was lost or left. SEED is what random choices are drawn from.
.PHONY: chaos
chaos: $(STAMP) ## kills, floods and starves real pools for a minute or two (ONLY="kill_storm recycles", SEED=1)
	@$(PY) -m tests.chaos $(ONLY) --size chaos --seed $(SEED) $(ARGS)

.PHONY: soak
soak: $(STAMP) ## the same with the numbers of docs/explanation/reliability.md, half an hour or more
	@$(PY) -m tests.chaos $(ONLY) --size soak --seed $(SEED) $(ARGS)

.PHONY: cpython-suite
cpython-suite: $(STAMP) ## CPython's own tests of executors against ours (exit code 2: this Python has none)
	@$(PY) -m tests.cpython $(ARGS)

# DSPY_SOURCE is a checkout of DSPy; its tests are not ours to keep, so nothing here runs without one.
DSPY_SOURCE ?=
.PHONY: dspy-suite
dspy-suite: $(STAMP) ## DSPy's own tests with every module under pool.wrap (DSPY_SOURCE=path/to/dspy, a checkout of it)
	@$(PY) -m tests.dspy_suite "$(DSPY_SOURCE)" $(ARGS)

.PHONY: coverage
coverage: $(STAMP) ## branches of pool/core and protocol that the unit tests reach: all, or it fails
	@$(PY) -m coverage run -m pytest -m unit tests/unit
	@$(PY) -m coverage report

.PHONY: check
check: lint type test coverage sim ## all of lint, type, test, coverage and sim

# The peers' environment is apart from .venv: Ray and dask bring a hundred packages, which nobody needs to work on dspool
# and which could hide that one of ours is missing. It is made by the Python of .venv.
BENCH_LOCK := requirements-peers.lock
BENCH_VENV := .venv-bench
BENCH_PY := $(BENCH_VENV)/bin/python
BENCH_PIP := $(BENCH_PY) -m pip --disable-pip-version-check --no-input -qq
BENCH_STAMP := $(BENCH_VENV)/.installed-$(shell { pwd; cat $(BENCH_LOCK) pyproject.toml; } 2>/dev/null | cksum | cut -d' ' -f1)
BENCHMARKS := calls throughput payload starts dspy_calls evaluate streams

$(BENCH_STAMP): | $(STAMP)
	@echo "dspool: bringing $(BENCH_VENV) up to date with the $$(grep -c '^[a-zA-Z]' $(BENCH_LOCK)) packages of $(BENCH_LOCK); the first time takes a minute or two"
	@[ -x $(BENCH_PY) ] || $(PY) -m venv $(BENCH_VENV)
	@rm -f $(BENCH_VENV)/.installed-*
	@$(BENCH_PIP) install --require-hashes --no-deps -r $(BENCH_LOCK) || $(call PIP_FAILED,the packages in $(BENCH_LOCK))
	@$(BENCH_PIP) install --no-deps --no-build-isolation -e . || $(call PIP_FAILED,dspool itself)
	@$(BENCH_PY) -m pip check >/dev/null || { $(BENCH_PY) -m pip check; echo "dspool: $(BENCH_LOCK) does not fit pyproject.toml any more: run make lock" >&2; }
	@touch $@

.PHONY: bench
bench: $(BENCH_STAMP) ## every benchmark beside its peers, most of an hour; ARGS are the scripts', ONLY="calls starts" picks some
	@for script in $(or $(ONLY),$(BENCHMARKS)); do $(BENCH_PY) -m benchmarks.$$script $(ARGS) || exit 1; echo; done

.PHONY: bench-quick
bench-quick: $(BENCH_STAMP) ## the same with few samples, two minutes: whether it works, and whether a change is worth a full run
	@for script in $(or $(ONLY),$(BENCHMARKS)); do $(BENCH_PY) -m benchmarks.$$script --quick $(ARGS) || exit 1; echo; done

.PHONY: lock
lock: $(STAMP) ## renew the lock files from pyproject.toml, for Python 3.11 and newer
	@$(PY) -m uv --quiet pip compile pyproject.toml --extra cli --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --output-file $(LOCK) $(LOCK_ARGS) >/dev/null
	@echo "dspool: $(LOCK) names $$(grep -c '^[a-zA-Z]' $(LOCK)) packages; run make setup to install them"
	@$(PY) -m uv --quiet pip compile pyproject.toml --extra peers --constraint $(LOCK) --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --output-file $(BENCH_LOCK) $(LOCK_ARGS) >/dev/null
	@echo "dspool: $(BENCH_LOCK) names $$(grep -c '^[a-zA-Z]' $(BENCH_LOCK)) packages, for make bench"

.PHONY: clean
clean: ## remove .venv, caches, reports and what was built
	@rm -rf $(VENV) $(BENCH_VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
