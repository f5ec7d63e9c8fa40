# make demo   sets everything up and runs the main job on the sample
# make test   sets everything up, lints, checks types and import directions, and runs the tests
# make audit  the privacy audits at length, with their tables;  make drill  kills, spoilt messages and what else is slow;  make bench  speed, every row of docs/performance.md;  make format  formats;  make clean  removes what make made

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
FIND_PYTHON = for p in $(PYTHONS); do \
	if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then echo $$p; break; fi; done

.PHONY: demo test lint audit drill bench format lock clean setup

demo: setup
	@test -f secrets/pseudonym.key || $(BIN)/sottovoce key secrets/pseudonym.key
	$(BIN)/sottovoce budget init data/samples/online_retail.toml
	$(BIN)/sottovoce run data/samples/online_retail.toml
	$(BIN)/sottovoce query "select rank, title, score from popular join items using (item_id, score) order by rank limit 5"
	$(BIN)/sottovoce query "from recommend(['85123A', '22423'], 5)"
	$(BIN)/sottovoce query "from privacy_spent()"
	$(BIN)/sottovoce budget show data/samples/online_retail.toml

# Three processes on two cores, of one thread each in linear algebra: tests of streams and clusters wait for much of their time.
test: lint
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup
	$(BIN)/pytest -m slow tests/audit
	$(BIN)/python -m tests.audit.membership

drill: setup
	$(BIN)/pytest -m slow --ignore tests/audit -s

bench: setup
	$(BIN)/python -m tests.bench.all

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sort -f; } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

setup: $(BIN)/.ready

# LightFM builds from source: a C compiler and Python's own headers must be there. What is missing is named first.
$(BIN)/.ready: setup.py constraints.txt
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" || { echo "make: no Python 3.11, 3.12 or 3.13 found among: $(PYTHONS). Install one, or say PYTHON=/path/to/python." >&2; exit 1; }; \
	$$python -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $$python has no venv module. On Debian: apt install python3-venv." >&2; exit 1; }; \
	$$python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
		|| { echo "make: $$python has no headers (Python.h), which LightFM builds with. On Debian: apt install python3-dev." >&2; exit 1; }; \
	command -v $${CC:-cc} >/dev/null || { echo "make: no C compiler ($${CC:-cc}), which LightFM builds with. On Debian: apt install gcc." >&2; exit 1; }; \
	echo "Setting up $(VENV) with $$python: a minute or two."; \
	$$python -m venv $(VENV)
	$(BIN)/pip install --quiet --progress-bar on -c constraints.txt -e '.[dev]'
	touch $@
