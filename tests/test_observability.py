"""Prometheus and Grafana as `docker/` ships them: the rules are tested, and every metric in rules and dashboard is a real one."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from conftest import Files, Registry, find_free_port
from serving import Service, serving

from digits import reference
from digits.storage import cooldowns, database, ledger, monitoring_results
from digits.storage.monitoring_results import MonitoringResult

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "docker" / "prometheus"
GRAFANA = ROOT / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "digits.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
CONFIG: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
OF_PROMETHEUS = {"up", "ALERTS"}
EMPTY = {'ALERTS{alertstate="firing"}', "max(changes(digits_champion_version[1m])) > 0"}

has_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")), reason="Prometheus is not installed"
)


def expressions() -> list[str]:
    """Every expression of the dashboard, with an interval for Grafana's variable."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    found += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    return [expression.replace("$__rate_interval", "10s") for expression in found]


def metric_names(expression: str) -> set[str]:
    """The names in an expression that may be metrics: those of ours, and Prometheus's own."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\bdigits_\w+|\bup\b|\bALERTS\b", bare))


def promtool(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=60)


@has_prometheus
def test_the_configuration_and_the_rules_pass_their_tests() -> None:
    for words in (("check", "config", PROMETHEUS / "prometheus.yml"), ("test", "rules", PROMETHEUS / "rules_test.yml")):
        done = promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr


@has_prometheus
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_that_never_fires_fails_its_test(rule: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    path = tmp_path / "prometheus" / "rules.yml"
    rules = yaml.safe_load(path.read_text())
    for group in rules["groups"]:
        for one in group["rules"]:
            if one["alert"] == rule["alert"]:
                one["expr"] = "vector(0) > 1"
    path.write_text(yaml.safe_dump(rules))
    assert promtool("test", "rules", path.with_name("rules_test.yml")).returncode != 0


def test_every_rule_says_what_is_wrong_and_what_to_do() -> None:
    assert len(RULES) > 10 and len({rule["alert"] for rule in RULES}) == len(RULES)
    page = (ROOT / "docs" / "how-to" / "observe.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"| `{rule['alert']}` |" in page, rule["alert"]


def test_the_panels_do_not_overlap_and_query_the_provisioned_source() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    (uid,) = (one["uid"] for one in source["datasources"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    used = [one["datasource"]["uid"] for one in [*PANELS, *DASHBOARD["annotations"]["list"]]]
    used += [target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]]
    assert set(used) == {uid}
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert one["x"] + one["w"] <= 24


def test_the_containers_get_the_files_and_reach_each_other() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == f"http://prometheus:{services['prometheus']['ports'][0].rsplit(':')[-1]}"
    (digits, _) = CONFIG["scrape_configs"]
    (discovery,) = digits["dns_sd_configs"]
    assert (
        discovery["names"] == ["service"] and str(discovery["port"]) == services["service"]["ports"][0].rsplit(":")[-1]
    )
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "digits.yaml").read_text())["providers"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/digits.json"
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """A real one with the shipped configuration, which scrapes this target every second."""
    (digits, _) = CONFIG["scrape_configs"]
    scraped = {"job_name": digits["job_name"], "static_configs": [{"targets": [target]}]}
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shutil.copytree(PROMETHEUS, folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump({**CONFIG, "global": every, "scrape_configs": [scraped]}))
    address = f"127.0.0.1:{find_free_port()}"
    files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *files, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def query(client: httpx.Client, expression: str) -> list[Any]:
    answer = client.get("/query", params={"query": expression}).json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    result: list[Any] = answer["data"]["result"]
    return result


def fill(database_url: str) -> None:
    """What the flows store."""
    engine = database.connect(database_url)
    ledger.append(engine, "promotion", None, "1", "first", {})
    now = datetime.now(UTC)
    result = MonitoringResult(version="1", at=now, drift="no drift", severity="none", drifted_share=0.0)
    result.accuracy, result.labels, result.least = "as expected", 70, 0.95
    result.measured, result.low, result.high = 0.97, 0.95, 0.99
    monitoring_results.put(engine, result)
    cooldowns.put(engine, cooldowns.RETRAINED, now - timedelta(hours=1))
    engine.dispose()


def send_traffic(service: Service, images: np.ndarray) -> None:
    for image in images:
        service.client.post("/classify", json={"images": image.tolist()})
    service.client.post("/classify", json={"images": np.zeros((28, 28), int).tolist()})
    service.client.post("/classify", json={"images": 3})


@has_prometheus
@pytest.mark.slow
def test_a_real_prometheus_answers_every_query_of_the_dashboard_from_a_real_service(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    fill(f"sqlite:///{tmp_path}/digits.db")
    with serving(tmp_path, registry, DIGITS_SERVICE_WORKERS="2") as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        exported = set(re.findall(r"^(digits_\w+)", service.client.get("/metrics").text, re.MULTILINE))
        with prometheus(tmp_path / "prometheus", service.client.base_url.netloc.decode()) as client:
            deadline, missing = time.monotonic() + 90, set(expressions())
            while missing and time.monotonic() < deadline:
                send_traffic(service, sample.images[:5])
                time.sleep(0.5)
                try:
                    missing = {one for one in expressions() if not query(client, one)} - EMPTY
                except httpx.TransportError:
                    continue
            assert not missing
            exported |= set(re.findall(r"^(digits_\w+)", service.client.get("/metrics").text, re.MULTILINE))
            used = set().union(*map(metric_names, [*expressions(), *(rule["expr"] for rule in RULES)]))
            assert len(used) > 15 and used - OF_PROMETHEUS <= exported
            _check_values(client)
            _check_rules(client)


def _check_values(client: httpx.Client) -> None:
    def value(expression: str) -> float:
        ((_, one),) = (sample["value"] for sample in query(client, expression))
        return float(one)

    assert value("max(digits_accuracy)") == 0.97 and value("max(digits_drift_severity)") == 0
    assert value('sum(up{job="digits"})') == 1 and value("max(digits_champion_version)") == 1
    assert value("sum(digits_answers_total) - sum(digits_no_digit_answers_total)") > 0
    assert 3600 <= value("time() - max(digits_last_retraining_timestamp_seconds)") < 3800
    assert 0 <= value("time() - max(digits_champion_promoted_timestamp_seconds)") < 600


def _check_rules(client: httpx.Client) -> None:
    groups = client.get("/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    assert {rule["health"] for rule in rules} == {"ok"}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
