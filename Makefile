# The commands of a checkout. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help run test test-rabbitmq4 chaos lint bench soak clean lock

VENV   := .venv
PYTHON := $(VENV)/bin/python
# bootstrap.sh creates this file last. It runs again only if one of its inputs is newer.
READY  := $(VENV)/ready

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY)  ## start everything on this machine and show a demonstration (Ctrl-C stops it)
	@exec $(VENV)/bin/ringback up

test: $(READY)  ## run the tests against a private broker and database; some of them: make test T=tests/unit
# Three processes, each with its own broker and database: most tests wait for other processes.
	$(PYTHON) -m pytest $(or $(T),-n 3 --dist worksteal)

test-rabbitmq4: $(READY)  ## run the tests against RabbitMQ 4 from Debian 13 in a chroot (needs root, debootstrap)
	$(PYTHON) -m pytest --rabbitmq4 $(T)

chaos: $(READY)  ## break the nodes of a cluster under load, and count lost messages (needs root, iptables)
	$(PYTHON) -m pytest -m chaos -rA

lint: $(READY)  ## check style, format, types and import rules
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(READY)  ## measure the speed against hand-written programs
	$(PYTHON) -m tests.bench

soak: $(READY)  ## check memory for ten minutes under load, then run the slow tests
	$(PYTHON) -m tests.bench.soak
	$(PYTHON) -m pytest -m slow

lock: $(READY)  ## update requirements.lock to the newest versions that pyproject.toml allows
	sh deploy/local/lock.sh

clean:  ## stop the local stack and delete all generated files
	@test ! -x $(PYTHON) || $(PYTHON) -m deploy.local clean
	rm -rf .ringback $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml deploy/local/bootstrap.sh
	@sh deploy/local/bootstrap.sh
