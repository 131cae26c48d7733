"""`digits demo` on a platform as `digits up` starts it, on the bundled digits: the facts of its story, as the platform's own records have them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import get, post, put_migrated_databases
from test_platform import ROOT, Platform

from digits.storage import database, labels, ledger, predictions
from digits.storage.labels import AUDITOR
from ops.demo_plan import CLIENT

TIMEOUT_SECONDS = 1800

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(TIMEOUT_SECONDS)]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("home")
    put_migrated_databases(home)
    platform = Platform(home)
    platform.start()
    yield platform
    platform.stop()


@pytest.fixture(scope="module")
def story(platform: Platform) -> str:
    """What the demo prints."""
    command = [sys.executable, "-m", "ops", "demo"]
    done = subprocess.run(
        command, cwd=ROOT, env=platform.environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return done.stdout


def test_it_says_first_what_it_adds_and_tells_seven_chapters(platform: Platform, story: str) -> None:
    assert story.index(f"adds to {platform.home}") < story.index("  1. ")
    assert re.findall(r"^ *\d+:\d\d  (\d)\. ", story, re.MULTILINE) == list("1234567")


def test_five_recipes_are_compared_and_the_best_is_promoted(platform: Platform, story: str) -> None:
    runs = {run["name"]: run for run in mlflow_runs(platform) if run["n_models"] == "1"}
    assert set(runs) == {"kaggle-sgd", "classic", "adam", "compact", "sigmoid"}
    promoted = champions(platform)[1]
    best = max(run["test_accuracy"] for run in runs.values())
    (run,) = [run for run in runs.values() if run["version"] == promoted.after]
    assert run["test_accuracy"] == best and promoted.reason.startswith("demo: the best of five recipes, ")
    assert all(run["id"] in story for run in runs.values())  # in the address of the comparison


def test_the_alarm_names_the_cause_and_labels_show_the_fall(platform: Platform, story: str) -> None:
    ordinary, changed, labelled, healed = verdicts(platform)
    assert ordinary["drift"]["verdict"] == "no drift"
    assert changed["drift"]["verdict"] == "drift" and changed["drift"]["severity"] == "strong"
    causes = {one["perturbation"]: one["message"] for one in changed["drift"]["explanations"]}
    assert 30 < float(re.findall(r"slanted (\d+)° to the right", causes["slant"])[0]) < 46
    assert causes["slant"] in story
    assert changed["accuracy"]["verdict"] == "not enough labels" and labelled["accuracy"]["verdict"] == "worse"
    assert healed["accuracy"]["verdict"] != "worse" and healed["drift"]["severity"] != "strong"


def test_only_digits_that_the_demo_sent_are_labelled_by_an_auditor(platform: Platform, story: str) -> None:
    engine = database.connect(f"sqlite:///{platform.home}/digits.db")
    window = predictions.read_window(engine, datetime.min.replace(tzinfo=UTC), labelled=True)
    assert set(window.clients) == {CLIENT} and len(window) >= 2_000
    with engine.connect() as connection:
        given = labels.read(connection, window.ids)
    assert {row.source for row in given.values()} == {AUDITOR}
    assert window.audited.sum() >= 250


def test_the_retraining_heals(platform: Platform, story: str) -> None:
    healed = champions(platform)[2]
    assert healed.reason.startswith("traffic: only the candidate is right on ")
    assert [run["n_models"] for run in mlflow_runs(platform) if run["version"] == healed.after] == ["3"]
    (found,) = re.findall(r"answers, ([\d.]+) % \[.*?\] right; digits v\d+ reads ([\d.]+) %", story)
    after, before = map(float, found)
    assert after > before + 20
    assert f"healed: {before:.2f}% → {after:.2f}%" in story
    assert get(f"{platform.url}/about").json()["model_version"] == healed.after


def test_the_addresses_at_the_end_lead_to_what_they_name(platform: Platform, story: str) -> None:
    (id,) = re.findall(r"/runs/flow-run/([0-9a-f-]{36})", story)
    run = get(f"{platform.prefect}/flow_runs/{id}", auth=platform.prefect_login).json()
    assert run["state_type"] == "COMPLETED" and "demo" in run["tags"]
    reports = re.findall(r"file://(\S+/report\.html)", story)
    assert len(set(reports)) == 4 and all(Path(report).stat().st_size > 100_000 for report in reports)


def test_a_platform_with_traffic_of_its_own_is_left_alone(platform: Platform, story: str) -> None:
    assert platform.run("traffic", "-n", "110").returncode == 0
    entries = len(champions(platform))
    done = platform.run("demo")
    assert done.returncode == 1 and "has 110 answers of its own" in done.stderr and "--force" in done.stderr
    assert len(champions(platform)) == entries


def champions(platform: Platform) -> list[ledger.Entry]:
    return ledger.replacements(database.connect(f"sqlite:///{platform.home}/digits.db"))


def verdicts(platform: Platform) -> list[dict[str, Any]]:
    """Those of the demo's reports, oldest first; the hourly monitoring may have added others at the end."""
    paths = sorted(platform.home.glob("reports/*/verdict.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_bytes()) for path in paths][:4]


def mlflow_runs(platform: Platform) -> list[dict[str, Any]]:
    """Id, version, params and metrics of each training, as MLflow's API has them."""
    api = f"http://127.0.0.1:{platform.ports['DIGITS_MLFLOW_PORT']}/api/2.0/mlflow"
    experiment = get(f"{api}/experiments/get-by-name?experiment_name=digits", auth=platform.mlflow_login).json()
    wanted = {"experiment_ids": [experiment["experiment"]["experiment_id"]], "max_results": 100}
    runs = post(f"{api}/runs/search", json=wanted, auth=platform.mlflow_login).json()["runs"]
    found = get(f"{api}/model-versions/search?max_results=100", auth=platform.mlflow_login).json()["model_versions"]
    versions = {version["run_id"]: version["version"] for version in found}
    return [
        {
            "id": run["info"]["run_id"],
            "version": versions[run["info"]["run_id"]],
            **{one["key"]: one["value"] for part in ("params", "metrics") for one in run["data"][part]},
        }
        for run in runs
    ]
