# Doorward. `make run` and `make test` are all that a newcomer needs; both work on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet
T ?= tests
unexport PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE PGSERVICE PGSERVICEFILE PGPASSFILE PGOPTIONS PGSSLMODE PGTARGETSESSIONATTRS

.DEFAULT_GOAL := help
.PHONY: help run demo test test-cluster test-ha lint proto install bench bench-peers lock clean check-python

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/runtime.stamp ## Start Doorward with its own PostgreSQL on 127.0.0.1:50051 (ARGS="…" is passed on)
	@exec $(BIN)/doorward serve $(ARGS)

install: $(VENV)/runtime.stamp ## Install both packages into .venv
	@echo "Installed. Try: $(BIN)/doorward --help"

test: lint $(VENV)/newest.stamp ## Lint, types, and every test but test-ha (T=path runs one file or folder)
	$(BIN)/python -m pytest $(T) --ignore=tests/ha

test-cluster: $(VENV)/dev.stamp ## The faults of several servers on one database: kill, freeze, cut off, fail over
	$(BIN)/python -m pytest tests/cluster --every-kind

test-ha: $(VENV)/dev.stamp ## Switchover and failover by Patroni and etcd, with figures (needs etcd; makes .venv-ha)
	@test -x .venv-ha/bin/patroni || { $(PYTHON) -m venv .venv-ha && .venv-ha/bin/python $(PIP) install 'patroni[etcd3]' 'psycopg[binary]'; }
	DOORWARD_PATRONI=$(CURDIR)/.venv-ha/bin/patroni $(BIN)/python -m pytest tests/ha

lint: $(VENV)/dev.stamp $(VENV)/proto.stamp ## Style, types, imports, contract, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy client/doorward server/doorward_server tests bench tools examples
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python tools/generate.py --check

proto: $(VENV)/dev.stamp $(VENV)/proto.stamp ## Generate client/doorward/v1 from protos/
	$(BIN)/python tools/generate.py

demo: $(VENV)/runtime.stamp ## The story in a minute: issue, check, rotate, revoke on three replicas
	@$(BIN)/python examples/demo.py

bench: $(VENV)/dev.stamp ## Measure, and print the tables of docs/performance.md
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(VENV)/dev.stamp .venv-peers/peers.stamp ## client.check beside Cerbos and a hand-written service (installs both; needs npm)
	$(BIN)/python -m bench.peers

lock: $(VENV)/dev.stamp ## Resolve the newest versions that the packages allow into the lock files
	$(BIN)/python tools/lock.py

clean: ## Remove what make made (never a data directory)
	rm -rf $(VENV) .venv-proto .venv-newest .venv-ha .venv-peers .venv-local-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Doorward needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }

$(VENV)/bin/python: | check-python
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime.stamp: requirements.lock client/pyproject.toml server/pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) install --require-hashes -r requirements.lock
	$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e client -e server
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/runtime.stamp
	$(BIN)/python $(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/proto.stamp: requirements-proto.lock $(VENV)/dev.stamp
	$(PYTHON) -m venv --clear .venv-proto
	.venv-proto/bin/python $(PIP) install --require-hashes -r requirements-proto.lock
	@touch $@

$(VENV)/newest.stamp: requirements-newest.lock $(VENV)/dev.stamp
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python $(PIP) install --require-hashes -r requirements-newest.lock
	@touch $@

.venv-peers/peers.stamp: bench/peers.txt bench/cerbos.txt | check-python
	@command -v npm >/dev/null || { echo "Cerbos's server comes from npm, which is not installed here." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python $(PIP) install --no-deps -r bench/peers.txt
	mkdir .venv-peers/cerbos
	cd .venv-peers/cerbos && npm pack --silent "$$(cat $(CURDIR)/bench/cerbos.txt)" && tar xzf *.tgz
	@touch $@
