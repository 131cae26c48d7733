"""A retraining killed in any step and run again ends as an undisturbed one; what the dead one left open is closed."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from conftest import wait_for
from monitored import held_out, reference, window
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Completed, Running

from digits.data import datasets, inbox, perturbations, sources
from digits.settings import Settings, load_settings
from digits.storage import cooldowns, database, feedback, ledger, predictions
from digits.storage.labels import AUDITOR
from models import candidate_comparison, export, recipes, registry_reader
from models import registry as registries
from models.connections import Platform
from models.registry import RegistryWriter
from models.registry_reader import RegistryReader
from monitoring import reports
from services.prediction_log import PredictionLog

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300), pytest.mark.usefixtures("dead_run")]

QUICK = recipes.SIGMOID.model_copy(update={"epochs": 1})


@pytest.fixture(scope="module")
def dead_run(prefect: str) -> tuple[UUID, float]:
    """A flow run that began before the tests of this file and never ends, and the monotonic time of its start."""
    from flows.retrain import retrain

    with get_client(sync_client=True) as client:
        return client.create_flow_run(retrain, state=Running()).id, time.monotonic()


@pytest.fixture
def settings(
    mlflow_server: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """A home with the bundled digits, thirty new ones in the inbox and forty audited answers; an empty registry."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    monkeypatch.setattr(registries, "EXPERIMENT_NAME", name)
    monkeypatch.setattr(registries, "MODEL_NAME", name)
    monkeypatch.setattr(registry_reader, "MODEL_NAME", name)
    monkeypatch.setattr(recipes, "find", lambda _: QUICK)
    monkeypatch.setattr(recipes, "floor", lambda _: 0.3)
    read = inbox.read_inbox
    monkeypatch.setattr(inbox, "read_inbox", partial(read, settle_seconds=0))
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    bundled = sources.read("bundled", mnist=None, cache=tmp_path)
    datasets.save(bundled, tmp_path / "datasets")
    datasets.set_current(tmp_path / "datasets", bundled.fingerprint)
    new = 255 - (255 - bundled.train.images[:70]) // 2 * 2  # the same digits with other bits
    (tmp_path / "inbox").mkdir()
    np.savez(tmp_path / "inbox" / "more.npz", images=new[:30], labels=bundled.train.labels[:30])
    _answer(load_settings(), new[30:], bundled.train.labels[30:70])
    return load_settings()


def _answer(settings: Settings, images: np.ndarray, labels: np.ndarray) -> None:
    """Audited answers in the log, under ids that are the same in every test."""
    log = PredictionLog(settings.database_url, settings.spool, audit_sample_rate=1.0)
    ids = [f"{number:032x}" for number in range(len(images))]
    at = datetime(2026, 1, 5, 8, tzinfo=UTC)
    log.append(predictions.PredictionBatch(ids, at, "0", images, np.full((len(ids), 10), 0.1, np.float32), "/classify"))
    log.close()
    engine = database.connect(settings.database_url)
    for id, digit in zip(ids, labels.tolist(), strict=True):
        predictions.label(engine, id, digit, AUDITOR)


def run() -> str:
    from flows.retrain import retrain

    return retrain()


def state(settings: Settings) -> dict[str, Any]:
    """Everything a retraining leaves behind, without moments and numbers of versions."""
    engine = database.connect(settings.database_url)
    fingerprint = datasets.current(settings.datasets)
    assert fingerprint is not None
    version = RegistryReader(settings.mlflow_tracking_uri).version()
    assert version is not None
    registry = RegistryWriter(settings.mlflow_tracking_uri)
    run = registry.client.get_run(registry.client.get_model_version(registries.MODEL_NAME, version).run_id)
    training, judging = feedback.training(engine), feedback.audited_traffic(engine)
    assert training is not None and judging is not None
    return {
        "data": fingerprint,
        "weights": run.data.tags["weights_hash"],
        "gate": registry.version_tags(version)["gate"],
        "ledger": [(entry.action, entry.before, entry.reason.split(",")[0]) for entry in ledger.entries(engine)],
        "evidence": [sorted(entry.evidence) for entry in ledger.entries(engine)],
        "points to the champion": ledger.replacements(engine)[-1].after == version,
        "taken": sorted(path.name for path in (settings.inbox / "taken").iterdir()),
        "labels": (training.images.tobytes(), judging.images.tobytes(), feedback.waiting(engine)),
        "ended": cooldowns.at(engine, "retrained") is not None,
    }


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """Filled by the first test."""
    return {}


def test_undisturbed(settings: Settings, undisturbed: dict[str, Any]) -> None:
    assert "promote: there is no champion" in run()
    undisturbed.update(state(settings))
    first = ("promotion", None, "there is no champion"), ("pin", None, "the test part that the first champion")
    assert undisturbed["ledger"] == [*first]
    assert undisturbed["points to the champion"] and undisturbed["ended"]
    assert undisturbed["labels"][2] == 0


STEPS = {
    "trained": (export, "to_onnx"),
    "registered": (candidate_comparison, "fetch"),
    "judged": (RegistryWriter, "set_alias"),
    "promoted": (ledger, "append"),
    "recorded": (cooldowns, "put"),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_a_step_the_next_one_ends_as_an_undisturbed_one(
    step: str, settings: Settings, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not undisturbed:
        pytest.skip("needs the state of the undisturbed run")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], killed)
        with pytest.raises(BaseException):  # noqa: B017  # Prefect's words for it differ with where it strikes
            run()
    assert cooldowns.at(database.connect(settings.database_url), "retrained") is None
    run()
    assert state(settings) == undisturbed


def test_runs_of_a_dead_process_are_closed_and_living_ones_are_not(
    settings: Settings, dead_run: tuple[UUID, float]
) -> None:
    from flows import crashed_runs
    from flows.retrain import retrain

    registry = RegistryWriter(settings.mlflow_tracking_uri)
    with get_client(sync_client=True) as client:
        dead, began = dead_run
        time.sleep(max(0.0, began + 16 - time.monotonic()))
        starting = client.create_flow_run(retrain, state=Running())
        ended = client.create_flow_run(retrain, state=Completed())
        links = {"dead": dead, "starting": starting.id, "ended": ended.id}
        opened = {
            name: registry.open_run(name, {"prefect_run": f"http://prefect/runs/flow-run/{id}"})
            for name, id in links.items()
        }
        opened["by hand"] = registry.open_run("by hand", {})
        crashed_runs.mark_crashed(registry, timedelta(seconds=15))  # which those that have just started are far from
        states = {name: client.read_flow_run(UUID(str(id))).state for name, id in links.items()}
    assert {name: state and state.type for name, state in states.items()} == {
        "dead": StateType.CRASHED,
        "starting": StateType.RUNNING,
        "ended": StateType.COMPLETED,
    }
    found = {name: registry.client.get_run(id).info.status for name, id in opened.items()}
    assert found == {"dead": "FAILED", "starting": "RUNNING", "ended": "FAILED", "by hand": "RUNNING"}


def started_by_event(settings: Settings, report: Path) -> dict[str, Any]:
    """The parameters with which Prefect starts the deployed retraining once monitoring has emitted its event of this report."""
    from flows import deployments, monitor

    deployments.register(settings)
    images, labels = held_out()
    verdict = reports.assess(reference(), window(perturbations.thicken(images[:300], 1.5), labels[:300]))
    monitor.emit_events(Platform(settings), "1", verdict, report)

    def found() -> list[FlowRun]:
        return [run for run in client.read_flow_runs() if run.deployment_id and run.parameters.get("report")]

    with get_client(sync_client=True) as client:
        wait_for(found)
        (run,) = found()
    return run.parameters


def test_an_event_starts_nothing_within_the_cooldown_and_the_reason_and_the_report_are_with_the_run(
    settings: Settings,
) -> None:
    from flows.retrain import retrain

    name = "2026-01-05T08-00-00Z--2026-01-06T08-00-00Z-v1"
    report = settings.home / "reports" / name / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<h1>strokes are thicker</h1>")
    asked = started_by_event(settings, report)
    assert asked["report"] == name and asked["reason"].startswith("drift: ") and asked["cooldown"] is True
    assert "promote" in retrain(**asked)
    assert "events start the next from" in retrain(reason="drift: strokes thicker", cooldown=True)
    assert "there is nothing new to learn" in retrain(reason="labels: 300 new ones")
    registry = RegistryWriter(settings.mlflow_tracking_uri)
    (run,) = registry.client.search_runs([registry.experiment_id])
    assert run.data.tags["reason"] == asked["reason"]
    copy = registry.client.download_artifacts(run.info.run_id, "drift_report/report.html", str(settings.home))
    assert Path(copy).read_bytes() == report.read_bytes()
    with get_client(sync_client=True) as client:
        tags = {tag for run in client.read_flow_runs() for tag in run.tags}
    assert {"drift", "labels"} <= tags


def test_what_was_rolled_back_does_not_come_back_by_itself(settings: Settings) -> None:
    from flows.retrain import retrain
    from models import promotion

    assert "promote" in run()
    retrain(seed=1)
    if RegistryReader(settings.mlflow_tracking_uri).version() == "1":
        promotion.promote(Platform(settings), "2", "by hand")
    said = run()
    assert "digits v1 was the champion until the promotion of v2 (" in said and "`digits promote 1`" in said
    assert RegistryReader(settings.mlflow_tracking_uri).version() == "2"
