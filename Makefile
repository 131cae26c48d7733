# `make up` and `make test` need Python 3.11 or 3.12, make and a package index; they install everything else.

# uv from the PATH, otherwise one that is installed into .uv/.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON ?= python3

# Docker if its engine answers, otherwise Podman.
ENGINE = $(if $(shell docker info >/dev/null 2>&1 && docker compose version 2>/dev/null),docker,podman)
COMPOSE = $(if $(filter docker,$(ENGINE)),docker compose,$(shell command -v podman-compose || echo .venv/bin/podman-compose)) -f docker/compose.yaml --env-file docker/.env

# Where `make audit` looks vulnerabilities up; a mirror for networks that do not reach it.
OSV_URL ?= https://api.osv.dev/v1/query

.PHONY: help setup up down status audit bento compose-up compose-down pin-images test test-long test-fast lint format docs clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

# Nothing if uv is on the PATH.
INSTALLED_UV = $(if $(filter .uv/bin/uv,$(UV)),.uv/bin/uv)

setup: $(INSTALLED_UV)  ## install the locked dependencies into .venv and compile them
	@$(UV) python find --quiet >/dev/null 2>&1 || \
		echo "No Python 3.11 or 3.12 was found ($(PYTHON) is $$($(PYTHON) -V 2>&1)); uv tries to download one."
	@[ -d .venv ] || echo "Installing about 4 GB into .venv, only this time; it takes one to four minutes."
	@$(UV) sync --quiet --locked --compile-bytecode

up: setup  ## start the platform, train a first champion if there is none, print the addresses
	@.venv/bin/digits up

down:  ## stop a platform that was started in another terminal
	@.venv/bin/digits down

status:  ## show the servers, their addresses and states
	@.venv/bin/digits status

# An earlier file keeps its lines, and gets the secrets that are new.
docker/.env: docker/compose.yaml
	@umask 077; { cat $@ 2>/dev/null; for name in $$(grep -o '{[A-Z_]*:?' docker/compose.yaml | tr -d '{:?' | sort -u); do \
		grep -q "^$$name=" $@ 2>/dev/null || echo "$$name=$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"; done; } > $@.new && mv $@.new $@
	@echo "generated the secrets in $@"

compose-up: docker/.env  ## build the images and start the platform in containers; the secrets are in docker/.env; with PROFILE=observability also Prometheus and Grafana
	$(COMPOSE) build
	$(COMPOSE) $(if $(PROFILE),--profile $(PROFILE)) up -d
	@echo "Log in to MLflow and Prefect as admin with MLFLOW_PASSWORD or PREFECT_PASSWORD from docker/.env"
	@$(if $(PROFILE),echo "and to Grafana as admin with GRAFANA_PASSWORD")

compose-down: docker/.env  ## stop the containers; named volumes keep their state
	$(COMPOSE) --profile observability down

pin-images: docker/.env  ## write the digests of the base images into docker/.env; `make compose-up` then uses exactly these
	@umask 077; grep -vE '^(PYTHON|POSTGRES|PROMETHEUS|GRAFANA)_IMAGE=' docker/.env > docker/.env.new; \
	for default in $$(grep -oE '[A-Z]+_IMAGE:-docker[^}]+' docker/compose.yaml | sort -u); do \
		image=$${default#*:-}; $(ENGINE) pull --quiet $$image >/dev/null || \
			{ rm docker/.env.new; echo "$$image could not be pulled, so its digest is not known; docker/.env is unchanged"; exit 1; }; \
		echo "$${default%%:-*}=$$($(ENGINE) image inspect --format '{{index .RepoDigests 0}}' $$image)" >> docker/.env.new; \
	done; mv docker/.env.new docker/.env; grep -E '^(PYTHON|POSTGRES|PROMETHEUS|GRAFANA)_IMAGE=' docker/.env

bento: setup  ## build a Bento that contains the champion and needs no registry; prints its path
	@umask 077 && mkdir -p var && $(UV) export --quiet --locked --no-default-groups --no-emit-project --no-hashes --no-header --no-annotate -o var/requirements.txt
	@PATH="$(dir $(abspath $(UV))):$$PATH" .venv/bin/python -m services.bento var/requirements.txt  # BentoML calls uv

audit: $(INSTALLED_UV)  ## list all locked packages in var/sbom.cdx.json (CycloneDX) and fail if one has a known vulnerability
	@umask 077 && mkdir -p var && $(UV) export --quiet --locked --all-groups --format cyclonedx1.5 -o var/sbom.cdx.json
	@$(UV) run --quiet --locked --isolated --only-group audit .ci/audit.py var/sbom.cdx.json --osv-url $(OSV_URL)

# Two files at a time, in the order of tests/conftest.py.
PYTEST = .venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup lint  ## check style and types, run the tests; with LONG=1 the long ones too, as CI does
	$(PYTEST) $(if $(LONG),,-m "not long")

test-long: setup  ## run the tests of containers, replicas, sweeps, the Bento, the soak and the whole loop
	$(PYTEST) -m long

test-fast: setup  ## run the tests that start no servers
	.venv/bin/pytest -m "not slow"

lint: setup  ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: setup  ## format the code
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: setup  ## build the documentation site strictly into site/
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or with search: .venv/bin/python -m http.server -b 127.0.0.1 -d site"

clean:  ## remove the environments, caches and site; the state in var/ stays
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis site
