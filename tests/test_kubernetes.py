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
SERVICES = {name: one for name, one in yaml.safe_load(COMPOSE)["services"].items() if "profiles" not in one}
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


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    assert selector.keys() == {"matchLabels"}
    return selector["matchLabels"].items() <= labels.items()


def allowed(pod: str, direction: str) -> set[tuple[str, int]]:
    """The other ends and ports that the policies of a pod allow; `anywhere` where a rule names no pods."""
    labels, peers = labels_of(pod), "from" if direction == "ingress" else "to"
    rules = [
        rule
        for policy in of("NetworkPolicy")
        if selects(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get(direction, [])
    ]
    return {
        (other, port["port"])
        for rule in rules
        for port in rule["ports"]
        for other in (
            [name for peer in rule[peers] for name in PODS if selects(peer["podSelector"], labels_of(name))]
            if peers in rule
            else ["anywhere"]
        )
    }


def test_every_pod_is_closed_but_for_the_connections_it_needs() -> None:
    (closed,) = (one for one in of("NetworkPolicy") if one["metadata"]["name"] == "digits")
    assert set(closed["spec"]["policyTypes"]) == {"Ingress", "Egress"} and "ingress" not in closed["spec"]
    short = {name: name.split()[1] for name in PODS}
    assert all(selects(closed["spec"]["podSelector"], labels_of(name)) for name in PODS)
    connections = {
        (short[name], short[other], port)
        for name in PODS
        for other, port in allowed(name, "egress")
        if other in PODS and {(name, port), ("anywhere", port)} & allowed(other, "ingress")
    }
    assert connections == {
        ("service", "mlflow", 5000),
        ("flows", "mlflow", 5000),
        ("bootstrap", "mlflow", 5000),
        ("flows", "prefect", 4200),
        ("bootstrap", "prefect", 4200),
        ("flows", "service", 3000),
    }
    out = {(short[name], port) for name in PODS for other, port in allowed(name, "egress") if other == "anywhere"}
    databases = {(name, 5432) for name in ("service", "mlflow", "prefect", "flows")}
    assert out == databases | {("flows", 443), ("bootstrap", 443)} | {(name, 53) for name in short.values()}
    assert {name for name in PODS if any(one == "anywhere" for one, _ in allowed(name, "ingress"))} == {
        "Deployment service"
    }


def test_what_a_pod_is_told_to_call_it_may_call() -> None:
    for name, pod in PODS.items():
        told = str([container.get("env", []) for container in pod["containers"]])
        for host, port in re.findall(r"//(?:[^@/']*@)?([a-z]+):(\d+)", told):
            (target,) = [other for other in PODS if other.endswith(f" {host}")]
            assert (target, int(port)) in allowed(name, "egress"), f"{name} to {host}"
            ports = [one["containerPort"] for container in PODS[target]["containers"] for one in container["ports"]]
            assert int(port) in ports


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_limit_of_memory_is_that_of_compose(name: str) -> None:
    limit = CONTAINERS[name]["resources"]["limits"]["memory"]
    assert SERVICES[name]["mem_limit"] == limit.removesuffix("i").lower()


@pytest.mark.parametrize("name", PODS)
def test_a_pod_keeps_the_restricted_standard(name: str) -> None:
    """The volumes and host settings of https://kubernetes.io/docs/concepts/security/pod-security-standards/; the rest is tested above."""
    assert "pod-security.kubernetes.io/enforce=restricted" in (FOLDER / "digits.yaml").read_text()
    pod = PODS[name]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod["volumes"]:
        assert volume.keys() - {"name"} <= {"emptyDir", "persistentVolumeClaim", "configMap", "secret"}
    ports = [port for container in pod["containers"] for port in container.get("ports", [])]
    assert not any("hostPort" in port for port in ports)
