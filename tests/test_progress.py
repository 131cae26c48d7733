"""The progress of a training and its retries are seen in a real Prefect, and cost nothing while it is away."""

import time
from typing import Any

import pytest
from conftest import find_free_port, get, post, wait_for
from prefect import flow
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import progress, tasks
from flows.progress import progress_of
from models.recipes import COMPACT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

METRICS = {"loss": 0.1, "accuracy": 0.9, "val_loss": 0.1, "val_accuracy": 0.9876}


def artifacts(api: str, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = post(f"{api}/artifacts/filter", json={"flow_runs": {"id": {"any_": [run_id]}}}).json()
    return found


def test_a_training_shows_how_far_it_is_with_few_calls(prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []
    update = progress.update_progress_artifact

    def counted(id: Any, percent: float, description: str) -> None:
        update(id, percent, description)
        sent.append(percent)

    monkeypatch.setattr(progress, "update_progress_artifact", counted)

    @flow
    def training() -> str:
        with progress_of(COMPACT) as shown:
            shown.report(0, METRICS)
            wait_for(lambda: artifacts(prefect, str(flow_run.id)))
            time.sleep(progress.INTERVAL_SECONDS)
            shown.report(1, METRICS)
            wait_for(lambda: sent)
            for epoch in range(2, 20):  # it stops early
                shown.report(epoch, METRICS)
        return str(flow_run.id)

    (found,) = artifacts(prefect, training())
    assert (found["type"], found["data"]) == ("progress", 100)
    assert found["description"] == f"compact: epoch 20 of {COMPACT.epochs}, validation accuracy 0.9876"
    assert sent == [pytest.approx(200 / COMPACT.epochs), 100]


def test_without_prefect_a_training_neither_waits_nor_fails(prefect: str) -> None:
    nobody = f"http://127.0.0.1:{find_free_port()}/api"

    @flow
    def training() -> float:
        started = time.monotonic()
        with temporary_settings({PREFECT_API_URL: nobody}), progress_of(COMPACT) as shown:
            for epoch in range(COMPACT.epochs):
                shown.report(epoch, METRICS)
        return time.monotonic() - started

    assert training() < 20


def test_the_progress_of_a_training_that_fails_stays_where_it_was(prefect: str) -> None:
    @flow
    def training() -> str:
        with pytest.raises(ZeroDivisionError), progress_of(COMPACT) as shown:
            shown.report(2, METRICS)
            raise ZeroDivisionError
        return str(flow_run.id)

    (found,) = artifacts(prefect, training())
    assert found["data"] == pytest.approx(300 / COMPACT.epochs, abs=0.01)


def test_a_step_that_waits_for_a_server_is_seen_to_retry(prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BACKOFF_SECONDS", 0.1)
    attempts = 0

    def read_registry() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError("the registry at http://127.0.0.1:5000 does not answer")
        return attempts

    @flow
    def reading() -> str:
        assert tasks.server_task(read_registry)() == 3
        return str(flow_run.id)

    wanted = {"flow_runs": {"id": {"any_": [reading()]}}}
    EventsWorker.drain_all()
    wait_for(lambda: [run for run in post(f"{prefect}/task_runs/filter", json=wanted).json() if run["run_count"] == 3])
    (run,) = post(f"{prefect}/task_runs/filter", json=wanted).json()
    assert run["name"].startswith("read_registry") and run["state_name"] == "Completed"
    states = get(f"{prefect}/task_run_states/?task_run_id={run['id']}").json()
    assert [state["name"] for state in states].count("AwaitingRetry") == 2
