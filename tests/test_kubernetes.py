"""The manifests: valid by Kubernetes's own schemas, safe as the compose file is, and the same names, ports and settings as elsewhere."""

import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from digits.settings import Settings

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker" / "kubernetes"
COMPOSE = (ROOT / "docker" / "compose.yaml").read_text()
SERVICES = yaml.safe_load(COMPOSE)["services"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OLDEST = "1.30"  # from which on a container may sleep before it stops

Manifest = dict[str, Any]


def documents() -> list[Manifest]:
    return [one for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


MANIFESTS = {f"{one['kind']} {one['metadata']['name']}": one for one in documents()}
PODS = {name: one["spec"]["template"]["spec"] for name, one in MANIFESTS.items() if "template" in one.get("spec", {})}
CONTAINERS = {container["name"]: container for pod in PODS.values() for container in pod["containers"]}


def of(kind: str) -> list[Manifest]:
    return [one for one in MANIFESTS.values() if one["kind"] == kind]


def labels_of(name: str) -> dict[str, str]:
    labels: dict[str, str] = MANIFESTS[name]["spec"]["template"]["metadata"]["labels"]
    return labels


def test_every_part_is_there_once() -> None:
    assert len(MANIFESTS) == len(documents())
    assert set(PODS) == {
        "Deployment service",
        "Deployment mlflow",
        "Deployment prefect",
        "StatefulSet flows",
        "Job bootstrap",
    }
    assert set(CONTAINERS) == set(SERVICES) - {"postgres"}


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_keeps_the_schema_of_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_the_schema_is_really_looked_at() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**MANIFESTS["Deployment service"], "sped": {}}, OLDEST, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for image in ("serving", "flows"):
        assert f"USER {pod['securityContext']['runAsUser']}" in (ROOT / "docker" / f"{image}.Dockerfile").read_text()
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in MANIFESTS[name]["spec"].get("volumeClaimTemplates", [])}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
        for kind in ("requests", "limits"):
            assert set(container["resources"][kind]) == {"cpu", "memory"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_runs_the_image_of_this_version_and_the_command_of_compose(name: str) -> None:
    container, service = CONTAINERS[name], SERVICES[name]
    default = re.search(r":-([\w-]+)", service["image"])
    assert default and container["image"] == f"{default.group(1)}:{VERSION}"
    ours = [word.replace("$(DATABASE)", "postgres:5432") for word in container.get("args", [])]
    assert ours == service.get("command", [])
    # a port that compose publishes is the one here, probed by what answers it
    published = [int(port.rsplit(":", 1)[1]) for port in service.get("ports", [])]
    assert [port["containerPort"] for port in container.get("ports", [])] == published
    probes = {probe for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in container}
    assert len(probes) == 3 * len(published)


def variables(container: Manifest) -> dict[str, Manifest]:
    return {one["name"]: one for one in container.get("env", [])}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_set_up_as_in_compose(name: str) -> None:
    config = MANIFESTS["ConfigMap digits"]["data"]
    assert CONTAINERS[name]["envFrom"] == [{"configMapRef": {"name": "digits"}}]
    ours = variables(CONTAINERS[name])
    known = {f"DIGITS_{field.upper()}" for field in Settings.model_fields}
    assert {one for one in ours if one.startswith("DIGITS_")} <= known
    theirs = set(SERVICES[name]["environment"])
    helpers = {"MLFLOW_PASSWORD", "PREFECT_PASSWORD", "DATABASE"}  # put together with others
    assert (set(ours) | set(config)) - helpers - {"DIGITS_AUTH", "DIGITS_ALLOWED_HOSTS"} <= theirs
    # the bootstrap job downloads its data and needs no prediction log; the addresses for browsers are not known
    missing = theirs - set(ours) - set(config) - {"DIGITS_MNIST", "DIGITS_MLFLOW_PUBLIC_URL", "PREFECT_UI_URL"}
    assert missing <= ({"DIGITS_DATABASE_URL"} | _chatty() if name == "bootstrap" else set())


def _chatty() -> set[str]:
    return {"PREFECT_LOGGING_EXTRA_LOGGERS", "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_secret_is_named_and_not_written_down(name: str) -> None:
    explained = (FOLDER / "digits.yaml").read_text()
    seen: set[str] = set()
    for variable, one in variables(CONTAINERS[name]).items():
        if "value" in one:
            for used in re.findall(r"\$\((\w+)\)", one["value"]):
                assert used in seen, f"{variable} uses {used}, which stands after it"
            assert not re.search(r"PASSWORD|SECRET|DATABASE_URL|STORE_URI", variable), variable
            assert not re.search(r"://[^/@]*:(?!\$\()[^/@]*@", one["value"]), variable
        else:
            secret = one["valueFrom"]["secretKeyRef"]
            assert secret["name"] == "digits" and f"--from-literal={secret['key']}=" in explained
        seen.add(variable)


def test_what_refers_to_something_finds_it() -> None:
    claims = {one["metadata"]["name"] for one in of("PersistentVolumeClaim")}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in PODS.values()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims
    for service in of("Service"):
        chosen = [name for name in PODS if labels_of(name) == service["spec"]["selector"]]
        assert len(chosen) == 1, service["metadata"]["name"]
        ports = {port["name"] for one in PODS[chosen[0]]["containers"] for port in one.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for name in PODS:
        if "selector" in MANIFESTS[name]["spec"]:
            assert MANIFESTS[name]["spec"]["selector"]["matchLabels"] == labels_of(name)
    (scaler,) = of("HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    assert MANIFESTS[f"{target['kind']} {target['name']}"]["apiVersion"] == target["apiVersion"]
    assert "replicas" not in MANIFESTS["Deployment service"]["spec"]  # which would undo the autoscaler at each apply
    (budget,) = of("PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"] == labels_of("Deployment service")
    assert budget["spec"]["minAvailable"] < scaler["spec"]["minReplicas"]
    addresses = {f"{one['metadata']['name']}:{port['port']}" for one in of("Service") for port in one["spec"]["ports"]}
    called = set(
        re.findall(r"//(?:[^@/\"]*@)?([a-z]+:\d+)", "".join(path.read_text() for path in FOLDER.glob("*.yaml")))
    )
    assert called and called <= addresses


def test_the_service_asks_for_keys_in_a_cluster() -> None:
    assert variables(CONTAINERS["service"])["DIGITS_AUTH"]["value"] == "required"
