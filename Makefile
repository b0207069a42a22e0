# Every target sets up its own environment first: a machine with Python, its venv module and make is
# enough. uv is used when it is there. Everything that is fetched is checked against a hashed lock.
#
#   VENV=.venv        where the environment lives
#   PYTHON=python3    the Python it is made with (3.11, 3.12 or 3.13)
#   UV=               an empty value: use pip even where uv is installed
#   ARGS=             more arguments for the program that a target runs

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
# Asked for by name: that Python or none. Otherwise the first on the PATH that is supported, and
# where there is none, the one that uv finds or fetches.
PYTHONS := $(if $(filter undefined,$(origin PYTHON)),python3 python3.13 python3.12 python3.11,$(PYTHON))
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# uv does not read pip's settings: where pip was told of an index of its own, pip it is.
# It is run, not only looked up: a pyenv shim is found for versions that do not have it.
UV ?= $(if $(PIP_INDEX_URL),,$(shell uv --version >/dev/null 2>&1 && command -v uv))
BIN = $(abspath $(VENV))/bin

# Tests, checks and the demo start without this machine's variables, so that they do elsewhere what
# they do here, and with an empty HOME of their own, named by their process (`exec` keeps its number);
# what a process that is gone left there is swept.
CLEAN = mkdir -p .home && for home in .home/*; do \
	kill -0 "$${home\#\#*/}" 2>/dev/null || rm -rf "$$home"; done; mkdir -p ".home/$$$$"; \
	exec env -i HOME="$(CURDIR)/.home/$$$$" PATH="$(BIN):$$PATH" LANG=C.UTF-8 $(if $(CI),CI="$(CI)")

.PHONY: help serve demo test test-long check format docs bench lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

serve: $(VENV)/.installed  ## run the server with your own Claude credential (ARGS="--port 4000")
	@exec "$(BIN)/session-supervisor" serve $(ARGS)

demo: $(VENV)/.installed  ## run the server on the offline model: no network, no key
	@$(CLEAN) $(if $(PORT),PORT="$(PORT)") session-supervisor serve --offline $(ARGS)

test: $(VENV)/.installed-dev  ## run the tests (ARGS="-k mailbox")
	@$(CLEAN) pytest $(ARGS)

test-long: $(VENV)/.installed-dev  ## the tests, further random ones, and two minutes of chaos (ARGS="--seed 7")
	@$(CLEAN) pytest --hypothesis-profile=long
	@$(CLEAN) python -m bench.chaos --seconds 120 $(ARGS)

check: $(VENV)/.installed-dev  ## formatting, lint and types
	@$(CLEAN) ruff format --check
	@$(CLEAN) ruff check
	@$(CLEAN) mypy
	@$(CLEAN) PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright --warnings --pythonpath "$(BIN)/python"

format: $(VENV)/.installed-dev  ## format, and mend what lint can mend by itself
	@$(CLEAN) ruff check --fix-only
	@$(CLEAN) ruff format

docs: $(VENV)/.installed-dev  ## write the generated parts of the documentation anew
	@$(CLEAN) python docs/generate.py

bench: $(VENV)/.installed-dev  ## measure; last the load suite, which writes a report (45 minutes)
	@$(CLEAN) python -m bench.overhead
	@$(CLEAN) python -m bench.mailbox
	@$(CLEAN) python -m bench.density
	@$(CLEAN) python -m bench.streams
	@$(CLEAN) python -m bench $(ARGS)

# Both locks hold for every supported Python and system. Versions stay as they are while they
# satisfy pyproject.toml; ARGS=--upgrade takes the newest.
COMPILE = "$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-config --custom-compile-command "make lock" --extra http pyproject.toml

lock: $(VENV)/.installed-dev  ## write the requirement locks anew (ARGS=--upgrade)
	@$(COMPILE) --group dev -o requirements-dev.lock $(ARGS)
	@$(COMPILE) --group build --constraints requirements-dev.lock -o requirements.lock $(ARGS)

clean:  ## remove the environment, caches and builds
	rm -rf "$(VENV)" .home .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage* htmlcov \
		build dist
	find supervisor http tests -name __pycache__ -type d -prune -exec rm -rf {} +

# What the server needs to run, and this project itself, editable.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(call install,requirements.lock)
	@touch $@

# The same versions, and the tools beside them.
$(VENV)/.installed-dev: requirements-dev.lock requirements.lock pyproject.toml
	@$(call install,requirements-dev.lock)
	@touch "$(VENV)/.installed" $@

# The environment's own pip, or uv, takes every file from the lock, by hash; then the project is
# built without isolation, with the build tools of the lock, and nothing is fetched.
define install
set -eu; \
if ! "$(BIN)/python" -c '' 2>/dev/null; then \
	python=; \
	for name in $(PYTHONS); do \
		if "$$name" -c '$(SUPPORTED)' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ] && [ -n "$(if $(filter undefined,$(origin PYTHON)),$(UV))" ]; then \
		python='>=3.11,<3.14'; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "make: this needs Python 3.11, 3.12 or 3.13; looked at: $(PYTHONS)" >&2; \
		echo "make: install one and name it: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.13" >&2; \
		exit 1; \
	fi; \
fi; \
if [ -n "$(UV)" ]; then \
	"$(BIN)/python" -c '' 2>/dev/null || "$(UV)" venv --quiet --allow-existing --python "$$python" "$(VENV)"; \
	"$(UV)" pip install --quiet --python "$(BIN)/python" --require-hashes -r $(1); \
	"$(UV)" pip install --quiet --python "$(BIN)/python" --no-deps --no-build-isolation -e .; \
else \
	"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$${python:-$(BIN)/python}" -m venv "$(VENV)" || { \
		echo "make: $$python cannot make an environment; on Debian: apt-get install python3-venv" >&2; \
		exit 1; \
	}; \
	"$(BIN)/python" -m pip install --quiet --require-hashes -r $(1); \
	"$(BIN)/python" -m pip install --quiet --no-deps --no-build-isolation -e .; \
fi
endef
