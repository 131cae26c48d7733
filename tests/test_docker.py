"""The files of the images and of the compose file, read: what goes in, what comes out, and who may do what."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKERFILES = {path.name.split(".")[0]: path.read_text() for path in (ROOT / "docker").glob("*.Dockerfile")}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ROOMS = {"digits", "models", "services"}


def copied(dockerfile: str) -> set[str]:
    """What the COPY lines take from the context."""
    lines = re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE)
    return {source for line in lines for source in line.split()[:-1]}


def packages(group: str | None = None) -> set[str]:
    """Names of the base dependencies, or of a group's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["dependency-groups"][group] if group else project["project"]["dependencies"]
    return {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in wanted}


def test_only_what_the_images_copy_is_let_into_the_context() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert let_in == set().union(*map(copied, DOCKERFILES.values()))
    assert all((ROOT / name).exists() for name in let_in)
    assert all(line.startswith("**/") for line in lines[1:] if not line.startswith("!"))


def test_an_image_holds_the_rooms_it_runs_and_the_packages_are_a_layer_before_them() -> None:
    assert copied(DOCKERFILES["serving"]) == ROOMS | {"pyproject.toml", "uv.lock"}
    assert copied(DOCKERFILES["flows"]) >= ROOMS | {"monitoring", "flows", "ops"}
    for dockerfile in DOCKERFILES.values():
        locked, sync, code = (
            dockerfile.index(text) for text in ("COPY pyproject.toml uv.lock", "uv sync", "COPY digits")
        )
        assert locked < sync < code
        assert "--locked" in dockerfile and "--no-dev" in dockerfile
        assert not re.search(r"^ADD |https?://(?!127\.0\.0\.1)", dockerfile, re.MULTILINE)


def test_the_serving_image_takes_the_base_dependencies_only() -> None:
    assert "--no-default-groups" in DOCKERFILES["serving"] and "--group" not in DOCKERFILES["serving"]
    assert not packages() & {"tensorflow", "keras", "mlflow", "prefect", "evidently", "scikit-learn", "pandas"}
    assert {"prefect-docker", "prefect-kubernetes"} <= packages("pools") and "--group pools" in DOCKERFILES["flows"]


def test_the_images_run_a_python_that_the_project_allows_with_one_uv_and_no_rights() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = map(int, re.findall(r"3\.(\d+)", project["requires-python"]))
    for dockerfile in DOCKERFILES.values():
        assert re.findall(r"^FROM (.+)$", dockerfile, re.MULTILINE) == ["${PYTHON_IMAGE}"]
        (minor,) = re.findall(r"^ARG PYTHON_IMAGE=docker\.io/library/python:3\.(\d+)-slim-bookworm$", dockerfile, re.M)
        assert low <= int(minor) < high
        assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["10001:10001"]
        assert dockerfile.index("COPY digits") < dockerfile.index("USER")
    assert len({tuple(re.findall(r" uv==(\S+)", dockerfile)) for dockerfile in DOCKERFILES.values()}) == 1
    assert "HEALTHCHECK" in DOCKERFILES["serving"] and "/livez" in DOCKERFILES["serving"]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_read_only_without_rights_and_start_again(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"].split(":")[0] in ("unless-stopped", "on-failure")
    assert service["cap_drop"] == ["ALL"]
    # PostgreSQL's image begins as root, to hand its volume to its own user; ours name theirs
    root = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"] if name == "postgres" else []
    assert service.get("cap_add", []) == root
    assert not {"privileged", "user", "network_mode", "pid", "depends_on"} & service.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_a_limit_of_memory_and_of_processes(name: str) -> None:
    assert re.fullmatch(r"[1-9]g", SERVICES[name]["mem_limit"])
    assert 0 < SERVICES[name]["pids_limit"] <= 4096
    assert "memswap_limit" not in SERVICES[name]


def test_the_base_images_can_be_pinned_by_digest(tmp_path: Path) -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    defaults = dict(re.findall(r"\$\{([A-Z]+_IMAGE):-(docker\.io/[^}]+)\}", text))
    assert defaults.keys() == {f"{name}_IMAGE" for name in ("PYTHON", "POSTGRES", "PROMETHEUS", "GRAFANA")}
    assert all(re.search(r":v?\d", image) for image in defaults.values())
    for dockerfile in DOCKERFILES.values():
        assert f"ARG PYTHON_IMAGE={defaults['PYTHON_IMAGE']}\n" in dockerfile
    pinned = pin_images(tmp_path, pull="true")
    assert pinned.returncode == 0
    path = tmp_path / "docker" / ".env"
    environment = dict(line.split("=", 1) for line in path.read_text().splitlines())
    digest = "@sha256:" + "ab" * 32
    assert {name: environment[name] for name in defaults} == {name: value + digest for name, value in defaults.items()}
    assert len(environment["MLFLOW_PASSWORD"]) == 48 and path.stat().st_mode & 0o77 == 0
    with path.open("a") as file:
        file.write("DIGITS_FLOWS_IMAGE=registry.example/flows:1\n")
    again = pin_images(tmp_path, pull="true")
    assert again.returncode == 0 and path.read_text().count("_IMAGE=") == 5
    assert "DIGITS_FLOWS_IMAGE=registry.example/flows:1\n" in path.read_text() and "DIGITS" not in again.stdout


def test_without_a_registry_pinning_says_so_and_changes_nothing(tmp_path: Path) -> None:
    done = pin_images(tmp_path, pull="false")
    assert done.returncode != 0
    assert "docker.io/grafana/grafana:12.1.0 could not be pulled, so its digest is not known" in done.stdout
    left = {path.name for path in (tmp_path / "docker").iterdir()}
    assert left == {".env", "compose.yaml"} and "_IMAGE=" not in (tmp_path / "docker" / ".env").read_text()


def test_an_earlier_file_of_secrets_gets_those_that_are_new_and_keeps_the_others(tmp_path: Path) -> None:
    assert pin_images(tmp_path, pull="true").returncode == 0
    path = tmp_path / "docker" / ".env"
    before = path.read_text().splitlines()
    kept = [line for line in before if not line.startswith("GRAFANA_PASSWORD=")]
    path.write_text("\n".join(kept) + "\n")
    os.utime(path, (0, 0))
    assert pin_images(tmp_path, pull="true").returncode == 0
    after = path.read_text().splitlines()
    (new,) = set(after) - set(kept)
    assert set(kept) < set(after) and new.startswith("GRAFANA_PASSWORD=") and len(new) > 48
    assert path.stat().st_mode & 0o77 == 0


def pin_images(folder: Path, pull: str) -> "subprocess.CompletedProcess[str]":
    """`make pin-images` in a copy, with a stand-in for Docker's command line that pulls by the command `pull`."""
    (folder / "docker").mkdir(exist_ok=True)
    for name in ("Makefile", "docker/compose.yaml"):
        shutil.copy(ROOT / name, folder / name)
    engine = folder / "engine"
    digest = "@sha256:" + "ab" * 32
    engine.write_text(
        f'#!/bin/sh\nif [ "$1" = pull ]; then {pull}; else for last; do :; done; echo "$last{digest}"; fi\n'
    )
    engine.chmod(0o755)
    command = ["make", "--silent", "--directory", folder, "pin-images", f"ENGINE={engine}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_only_the_service_and_the_uis_are_published_and_to_this_machine_only() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", [])}
    assert published.keys() == {"service", "mlflow", "prefect", "reports", "prometheus", "grafana"}
    for name, port in published.items():
        assert re.fullmatch(r"127\.0\.0\.1:\$\{DIGITS_" + name.upper() + r"_PORT:-(\d+)\}:\1", port)


def test_no_secret_has_a_default_and_every_one_is_generated() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    secrets = set(re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|KEY)\w*)", text))
    assert len(secrets) == 8
    for name in secrets:
        assert set(re.findall(r"\$\{" + name + r"\b(.{2})", text)) == {":?"}, name
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH_STRING|DATABASE_URL|CONNECTION_URL|STORE_URI|TRACKING_URI", name):
                assert re.search(r"\$\{\w+:\?", value), name
    assert "/docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_everything_kept_is_in_a_named_volume() -> None:
    mounted = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if re.match(r"\w+:", volume)
    }
    assert mounted == COMPOSE["volumes"].keys()
