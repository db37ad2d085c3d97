# Everything a newcomer types. `make` alone explains itself; recipes live where they can be read alone.
.DEFAULT_GOAL := help
.PHONY: help run test test-rabbitmq4 lint bench soak clean lock

VENV   := .venv
PYTHON := $(VENV)/bin/python
# Made last by bootstrap.sh: as long as it is newer than what it was made from, nothing is done.
READY  := $(VENV)/ready
# What waits more than it works runs two at a time, each with a broker and a database of its own;
# the acceptance lane measures neighbours, so nothing runs beside it.
SIDE_BY_SIDE := tests/unit tests/contract tests/integration

help:  ## show this text
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY)  ## start everything on this machine and show the first callbacks (Ctrl-C ends it)
	@exec $(VENV)/bin/ringback up

test: $(READY)  ## run the tests against a private broker and database; a part: make test T=tests/unit
ifdef T
	$(PYTHON) -m pytest $(T)
else
	$(PYTHON) -m pytest -n 2 --dist worksteal $(SIDE_BY_SIDE)
	$(PYTHON) -m pytest tests/acceptance
endif

test-rabbitmq4: $(READY)  ## the same against RabbitMQ 4 from Debian 13 in a chroot (needs root, debootstrap)
	$(PYTHON) -m pytest --rabbitmq4 $(or $(T),$(SIDE_BY_SIDE) tests/acceptance)

lint: $(READY)  ## style, format, types, import rules
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(READY)  ## measure speed against a hand-written sender, in one run
	$(PYTHON) -m tests.bench

soak: $(READY)  ## ten minutes under load (does memory grow?), then the tests that take minutes
	$(PYTHON) -m tests.bench.soak
	$(PYTHON) -m pytest -m slow tests/acceptance

lock: $(READY)  ## write requirements.lock anew with the newest versions that pyproject.toml allows
	sh deploy/local/lock.sh

clean:  ## stop the local stack and delete all that was made here
	@test ! -x $(PYTHON) || $(PYTHON) -m deploy.local clean
	rm -rf .ringback $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml deploy/local/bootstrap.sh
	@sh deploy/local/bootstrap.sh
