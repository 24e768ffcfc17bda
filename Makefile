# Each target needs only what the line of `prerequisites` names; nothing is written outside the checkout.
APT = apt install git make python3-venv
MAILWARD = .venv/bin/mailward
# As root the gateway becomes nobody, so its Python must be one that nobody may run: not one in a closed home.
AS_NOBODY = $(if $(filter 0,$(shell id -u)),setpriv --reuid=65534 --regid=65534 --clear-groups)
PYTHON := $(shell for p in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do \
	p=$$(command -v $$p) && (cd / && $(AS_NOBODY) $$p -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)') 2>/dev/null \
	&& echo $$p && break; done)

# Folders of tests that have a target of their own.
WHOLE = faults isolation packaging peers workers

.PHONY: run test test-slow $(WHOLE:%=test-%) fuzz check bench docs format clean prerequisites
.DEFAULT_GOAL := run

run: .venv/installed
	@exec $(MAILWARD) run --demo

test: .venv/developing
	.venv/bin/pytest -q -n auto --dist worksteal -m "not slow" tests

# Whole, the slow ones too; -s shows their progress and their numbers.
$(WHOLE:%=test-%): test-%: .venv/developing
	.venv/bin/pytest -q -s tests/$*

# The slow ones of all other folders.
test-slow: .venv/developing
	.venv/bin/pytest -q -s -m slow $(WHOLE:%=--ignore=tests/%) tests

# Ends by itself after MAILWARD_FUZZ_SECONDS (600).
fuzz: .venv/developing
	.venv/bin/python tests/fuzz/fuzz.py

check: .venv/developing
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/developing
	.venv/bin/python tests/bench/bench.py
	.venv/bin/python tests/bench/bench_queue.py
	.venv/bin/python tests/bench/plugins.py

docs: .venv/developing
	.venv/bin/python -m gateway.commands.reference docs/reference

format: .venv/developing
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find gateway plugins tests contrib -name __pycache__ -prune -exec rm -r {} +

prerequisites:
	@test -n "$(PYTHON)" && command -v git >/dev/null \
	|| { echo "Something is missing (git, or a Python 3.11 with venv$(if $(AS_NOBODY), that the user nobody may run)): run"; echo "  $(APT)"; exit 1; }
	@test -z "$(AS_NOBODY)" || (cd / && $(AS_NOBODY) test -r $(CURDIR)/Makefile) \
	|| { echo "As root the gateway runs as nobody, who cannot read $(CURDIR): move the checkout, e.g. to /srv"; exit 1; }

.venv/installed: pyproject.toml | prerequisites
	@test -z "$(AS_NOBODY)" || echo "You are root: the gateway will run as nobody, by $(PYTHON), and own ./var."
	umask 022; test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	umask 022; .venv/bin/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/developing: .venv/installed
	umask 022; .venv/bin/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	umask 022; .venv/bin/pip install --quiet --disable-pip-version-check --group dev
	@touch $@
