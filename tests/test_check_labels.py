"""The check of labels as a flow of its own: handed over to a worker or done in place, shown in MLflow, in Prefect and at `/label`."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Runs, find_free_port, get, post
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from sqlalchemy.exc import OperationalError

from digits.data import datasets
from digits.data.datasets import BadData
from digits.settings import load_settings
from digits.storage import suspected_labels
from flows import check_labels, deployments, retrain
from flows.ingest import ingest
from models import label_issues, recipes
from models.connections import Platform
from models.label_issues import LabelIssues
from ops import process_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def platform(trained_runs: Runs, prefect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """An empty home with the MLflow server of a few trainings, where the bundled digits are enough to be checked."""
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained_runs.uri)
    monkeypatch.setenv("PREFECT_API_URL", prefect)
    monkeypatch.setattr(label_issues, "MIN_IMAGES", 1000)
    return Platform(load_settings())


@pytest.fixture
def dataset(platform: Platform, trained_runs: Runs) -> str:
    """The bundled digits, stored there."""
    version = platform.registry.client.get_model_version("digits", trained_runs.first)
    found = datasets.load(trained_runs.datasets, version.tags["dataset"])
    datasets.save(found, platform.datasets)
    return found.fingerprint


@pytest.fixture
def found(platform: Platform, dataset: str) -> LabelIssues:
    """Three suspected labels of this data set."""
    rows = [{"part": "train", "row": row, "predicted": 3, "probability": 0.01 * row} for row in (1, 2, 3)]
    data = datasets.load(platform.datasets, dataset)
    for row in rows:
        row["label"] = int(data.train.labels[row["row"]])  # type: ignore[call-overload]
    return label_issues.from_json(data, {"checked": 1527, "accuracy": 0.95, "suspected": rows})


@pytest.fixture
def deployed(platform: Platform, prefect: str) -> Iterator[None]:
    deployments.register(platform.settings)
    yield
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)


def runs_of(prefect: str, dataset: str) -> list[dict[str, Any]]:
    """The checks of this data set, the newest first."""
    wanted = {"flows": {"name": {"any_": ["check-labels"]}}, "sort": "EXPECTED_START_TIME_DESC"}
    found = post(f"{prefect}/flow_runs/filter", json=wanted).json()
    return [run for run in found if run["parameters"]["dataset"] == dataset]


def assert_shown(platform: Platform, version: str, found: LabelIssues) -> None:
    """The suspected labels are in the queue, and on the MLflow run of the version as metric, JSON and picture."""
    client = platform.registry.client
    run = client.get_run(client.get_model_version("digits", version).run_id)
    assert run.data.metrics["suspected_labels"] == len(found) == 3
    assert len(suspected_labels.waiting(platform.engine, 9)) == 3
    path = client.download_artifacts(run.info.run_id, "suspected_labels.json", str(platform.settings.home))
    assert json.loads(Path(path).read_bytes()) == found.as_json()
    path = client.download_artifacts(run.info.run_id, "figures/suspected_labels.png", str(platform.settings.home))
    assert Path(path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("deployed")
def test_a_worker_does_the_check_that_it_is_handed(
    platform: Platform, dataset: str, found: LabelIssues, trained_runs: Runs, prefect: str
) -> None:
    known = {"inputs": label_issues.inputs_hash(dataset), **found.as_json()}
    path = check_labels.file_of(platform, dataset)
    path.parent.mkdir()
    path.write_text(json.dumps(known))  # as an earlier check of it left it
    check_labels.hand_over(platform, dataset, datetime.now(UTC), trained_runs.first)
    (run,) = runs_of(prefect, dataset)
    assert run["state_type"] == "SCHEDULED" and run["deployment_id"]
    assert suspected_labels.waiting(platform.engine, 9) == []
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "digits", "--run-once"]
    environment = {**os.environ, **process_environment.of_clients(platform.settings), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    run = get(f"{prefect}/flow_runs/{run['id']}").json()
    assert run["state_type"] == "COMPLETED", done.stdout + done.stderr
    assert_shown(platform, trained_runs.first, found)
    artifacts = post(f"{prefect}/artifacts/filter", json={"flow_runs": {"id": {"any_": [run["id"]]}}}).json()
    shown = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert "3 of 1,527 training images have a label that is probably wrong" in shown["labels"]
    lines = post(f"{prefect}/logs/filter", json={"logs": {"flow_run_id": {"any_": [run["id"]]}}}).json()
    told = [line["message"] for line in lines if line["name"] == "digits.check_labels"]
    assert any("3 of them wait for an auditor" in line for line in told), lines
    picture = shown["labels-pictures"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(picture).startswith(b"\x89PNG") and "/label" in shown["labels-label"]


def test_without_a_worker_it_is_done_in_place_as_a_flow_of_its_own(
    platform: Platform,
    dataset: str,
    found: LabelIssues,
    trained_runs: Runs,
    prefect: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_issues, "find", lambda dataset: found)
    check_labels.hand_over(platform, dataset, datetime.now(UTC), trained_runs.other_seed)
    assert_shown(platform, trained_runs.other_seed, found)
    assert runs_of(prefect, dataset)[0]["state_type"] == "COMPLETED"


def test_few_images_start_no_run_and_those_of_an_earlier_data_set_are_asked_about_no_longer(
    platform: Platform, dataset: str, prefect: str, found: LabelIssues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_issues, "MIN_IMAGES", 5000)
    suspected_labels.replace(platform.engine, "another", found.suspects())
    before = runs_of(prefect, dataset)
    check_labels.hand_over(platform, dataset, datetime.now(UTC))
    assert runs_of(prefect, dataset) == before
    assert suspected_labels.waiting(platform.engine, 9) == []


@pytest.mark.usefixtures("deployed")
def test_an_ingested_data_set_is_handed_over_too(platform: Platform, prefect: str) -> None:
    fingerprint = ingest("bundled")
    run = runs_of(prefect, fingerprint)[0]
    assert run["state_type"] == "SCHEDULED" and run["parameters"].items() >= {"dataset": fingerprint, "run": ""}.items()


def broken(_: object) -> LabelIssues:
    raise ArithmeticError("broken")


def test_a_check_that_fails_is_no_error_of_what_handed_it_over(
    platform: Platform, dataset: str, prefect: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(label_issues, "find", broken)
    check_labels.hand_over(platform, dataset, datetime.now(UTC))
    assert runs_of(prefect, dataset)[0]["state_type"] == "FAILED"
    assert f"the labels of data set {dataset} are not checked: " in caplog.text and "broken" in caplog.text


def test_without_prefect_it_is_left_out(platform: Platform, dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    nobody = {PREFECT_API_URL: f"http://127.0.0.1:{find_free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(nobody):
        check_labels.hand_over(platform, dataset, datetime.now(UTC))
    assert f"the labels of data set {dataset} are not checked" in caplog.text


@pytest.mark.parametrize("problem", [BadData("no manifest"), OperationalError("INSERT", {}, Exception("locked"))])
def test_no_error_of_the_stores_reaches_what_handed_it_over(
    platform: Platform,
    dataset: str,
    problem: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(datasets, "manifest", fail)
    check_labels.hand_over(platform, dataset, datetime.now(UTC))
    assert f"the labels of data set {dataset} are not checked: {problem}" in caplog.text


def test_a_data_set_that_cannot_be_judged_leaves_none_of_an_earlier_one(
    platform: Platform, dataset: str, found: LabelIssues, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspected_labels.replace(platform.engine, "another", found.suspects())
    monkeypatch.setattr(label_issues, "find", lambda _: None)
    assert check_labels.check(platform, datasets.load(platform.datasets, dataset)) is None
    assert suspected_labels.waiting(platform.engine, 9) == []


def test_a_retraining_that_began_before_another_data_set_came_does_not_replace_its_labels(
    platform: Platform, dataset: str, found: LabelIssues, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = datetime.now(UTC)
    suspected_labels.replace(platform.engine, "ingested later", found.suspects())
    monkeypatch.setattr(label_issues, "MIN_IMAGES", 5000)
    check_labels.hand_over(platform, dataset, began)
    assert len(suspected_labels.waiting(platform.engine, 9)) == 3


def test_a_retraining_frees_its_slot_before_the_check_and_ends_well_when_that_fails(
    platform: Platform, trained_runs: Runs, prefect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots: list[int] = []

    def find(_: object) -> LabelIssues:
        with get_client(sync_client=True) as client:
            slots.append(client.read_global_concurrency_limit_by_name(retrain.LIMIT).active_slots)
        return broken(_)

    monkeypatch.setattr(label_issues, "find", find)
    monkeypatch.setattr(recipes, "find", lambda _: recipes.SIGMOID.model_copy(update={"epochs": 1}))
    monkeypatch.setattr(recipes, "floor", lambda _: 0.3)
    assert retrain.retrain(data="bundled", seed=7).startswith("digits v")
    assert slots == [0]
    wanted = {"flows": {"name": {"any_": ["retrain"]}}}
    (run,) = post(f"{prefect}/flow_runs/filter", json=wanted).json()
    assert run["state_type"] == "COMPLETED"
