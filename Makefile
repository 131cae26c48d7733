# `make up` and `make test` need Python 3.11 or 3.12, make and a package index; the rest they get themselves.

# uv from the PATH, else one of our own.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON ?= python3

# Docker where its engine answers, else Podman.
COMPOSE = $(if $(shell docker info >/dev/null 2>&1 && docker compose version 2>/dev/null),docker compose,$(shell command -v podman-compose || echo .venv/bin/podman-compose)) -f docker/compose.yaml --env-file docker/.env

.PHONY: help setup up down status bento compose-up compose-down test test-long test-fast lint format docs clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

setup: $(if $(filter .uv/bin/uv,$(UV)),.uv/bin/uv)  ## install everything into .venv, as uv.lock says; compiled once here, not at each start
	@$(UV) python find --quiet >/dev/null 2>&1 || \
		echo "No Python 3.11 or 3.12 is here ($(PYTHON) is $$($(PYTHON) -V 2>&1)): install one, unless uv can fetch it now."
	@[ -d .venv ] || echo "Installing into .venv, once: about 4 GB."
	@$(UV) sync --quiet --locked --compile-bytecode

up: setup  ## start the platform: train a first champion, serve it, print the addresses
	@.venv/bin/digits up

down:  ## stop a platform started in another terminal
	@.venv/bin/digits down

status:  ## what is up, and where
	@.venv/bin/digits status

docker/.env:
	@umask 077; for name in $$(grep -o '{[A-Z_]*:?' docker/compose.yaml | tr -d '{:?' | sort -u); do \
		echo "$$name=$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; done > $@.new && mv $@.new $@
	@echo "generated the secrets in $@"

compose-up: docker/.env  ## the platform in containers: build, start, leave it running; the secrets are in docker/.env
	$(COMPOSE) build
	$(COMPOSE) up -d
	@echo "MLflow and Prefect ask for the name admin and for MLFLOW_PASSWORD or PREFECT_PASSWORD from docker/.env"

compose-down: docker/.env  ## stop the containers; their state stays in named volumes
	$(COMPOSE) down

bento: setup  ## build a Bento with the champion baked in, which needs no registry; prints where it is
	@mkdir -p var && $(UV) export --quiet --locked --no-default-groups --no-emit-project --no-hashes --no-header --no-annotate -o var/requirements.txt
	@PATH="$(dir $(abspath $(UV))):$$PATH" .venv/bin/python -m services.bento var/requirements.txt  # BentoML calls uv

test: setup lint  ## style, types and the tests, two files at a time
	.venv/bin/pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup  ## containers, replicas, sweeps, the Bento, the soak and the whole loop: what CI runs after `make test`
	.venv/bin/pytest -m long -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## the tests that start no servers
	.venv/bin/pytest -m "not slow"

lint: setup  ## style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: setup  ## put the code into its standard form
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: setup  ## the documentation site, built strictly into site/
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or with search: .venv/bin/python -m http.server -b 127.0.0.1 -d site"

clean:  ## remove the environments; the state in var/ stays
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis site
