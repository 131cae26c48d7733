"""The flows on a work pool of a real Prefect server: registered again and again, and dead runs told from living ones."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import get, post
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.schedules import Cron
from prefect.states import Crashed, Pending, Running

from digits.settings import Settings
from flows import crashed_runs, deployments

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def settings_of(prefect: str, **changes: Any) -> Settings:
    return Settings(_env_file=None, prefect_api_url=prefect, **changes)  # type: ignore[call-arg]


def registered(prefect: str) -> dict[str, Any]:
    found = post(f"{prefect}/deployments/filter", json={}).json()
    return {row["name"]: row for row in found}


def test_registering_twice_leaves_each_thing_once(prefect: str) -> None:
    settings = settings_of(prefect)
    deployments.register(settings)
    before = registered(prefect)
    deployments.register(settings)
    after = registered(prefect)
    assert {row["id"] for row in after.values()} == {row["id"] for row in before.values()}
    assert set(after) == set(deployments.DEPLOYED)
    assert all(row["description"] and row["tags"] for row in after.values())
    assert {row["work_pool_name"] for row in after.values()} == {"digits"}
    assert {row["job_variables"]["working_dir"] for row in after.values()} == {str(ROOT)}
    low = {name for name, row in after.items() if row["job_variables"]["command"].count("flows.low_priority")}
    assert low == {"Retrain daily", "Check labels"}
    schedules = {name: [one["schedule"]["cron"] for one in row["schedules"]] for name, row in after.items()}
    assert {name: crons for name, crons in schedules.items() if crons} == {
        "Retrain daily": ["0 3 * * *"],
        "Monitor hourly": ["0 * * * *"],
        "Hold unapproved": ["30 * * * *"],
    }
    for name in ("Retrain daily", "Monitor hourly", "Hold unapproved"):
        assert after[name]["global_concurrency_limit"]["limit"] == 1
        assert after[name]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert after["Check labels"]["global_concurrency_limit"]["limit"] == 1
    assert after["Check labels"]["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    automations = [row["name"] for row in post(f"{prefect}/automations/filter", json={}).json()]
    assert sorted(automations) == ["drift or new labels: retrain", "no heartbeat: crashed"]


def test_unapproved_versions_are_held_hourly_where_a_person_is_asked(prefect: str) -> None:
    for promotion, is_active in (("automatic", False), ("ask", True), ("automatic", False)):
        deployments.register(settings_of(prefect, promotion=promotion))
        (schedule,) = registered(prefect)[deployments.EXPIRY]["schedules"]
        assert schedule["active"] == is_active


def test_deployments_of_an_earlier_version_do_not_start_the_same_flows(prefect: str) -> None:
    settings = settings_of(prefect)
    deployments.register(settings)
    deployments.retrain.to_deployment("daily", schedule=Cron("0 3 * * *"), work_pool_name="digits").apply()
    assert "daily" in registered(prefect)
    deployments.register(settings)
    assert set(registered(prefect)) == set(deployments.DEPLOYED)


def test_the_scheduler_plans_runs_of_all_schedules(prefect: str) -> None:
    deployments.register(settings_of(prefect, promotion="ask"))
    ids = {registered(prefect)[name]["id"] for name in ("Retrain daily", "Monitor hourly", "Hold unapproved")}
    planned: dict[str, Any] = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "limit": 200}
    deadline = time.monotonic() + 150  # the scheduler looks once a minute
    while True:
        runs = post(f"{prefect}/flow_runs/filter", json=planned).json()
        if {run["deployment_id"] for run in runs if run["auto_scheduled"]} == ids:
            return
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_the_same_flows_go_to_a_pool_of_containers_by_a_setting(prefect: str, kind: str) -> None:
    settings = settings_of(
        prefect, work_pool=f"in-{kind}", work_pool_type=kind, flows_image="flows:7", job_variables={"env": {"A": "b"}}
    )
    entrypoints = {name: row["entrypoint"] for name, row in registered(prefect).items()}
    deployments.register(settings)
    pool = get(f"{prefect}/work_pools/in-{kind}").json()
    assert pool["type"] == kind
    assert "image" in pool["base_job_template"]["variables"]["properties"]
    after = registered(prefect)
    assert {name: row["entrypoint"] for name, row in after.items()} == entrypoints
    assert {row["work_pool_name"] for row in after.values()} == {f"in-{kind}"}
    for row in after.values():
        assert row["job_variables"] == {"image": "flows:7", "env": {**deployments.CLIENT_RETRIES, "A": "b"}}
        assert not row["pull_steps"]
    deployments.register(settings_of(prefect))  # and back
    assert {row["work_pool_name"] for row in registered(prefect).values()} == {"digits"}
    assert {tuple(row["job_variables"]) for row in registered(prefect).values()} == {("working_dir", "command", "env")}


def test_a_pool_of_another_type_is_refused(prefect: str) -> None:
    deployments.register(settings_of(prefect))
    with pytest.raises(ValueError, match="the work pool 'digits' is of type process, not docker; set DIGITS_WORK_POOL"):
        deployments.register(settings_of(prefect, work_pool_type="docker"))


def test_what_the_worker_and_its_runs_write_is_for_its_user_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(api: str) -> None:
        raise InterruptedError(api)

    monkeypatch.setattr(deployments, "wait_for_prefect", stop)
    before = os.umask(0o022)
    try:
        with pytest.raises(InterruptedError):
            deployments.main()
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)


def test_a_starting_worker_marks_what_died_with_the_one_before_it(prefect: str) -> None:
    deployments.register(settings_of(prefect))
    train = registered(prefect)["Train a recipe"]["id"]
    with get_client(sync_client=True) as client:
        dead, pending, alive, queued = [client.create_flow_run_from_deployment(train) for _ in range(4)]
        for run, state in ((dead, Running()), (pending, Pending()), (alive, Running())):
            client.set_flow_run_state(run.id, state, force=True)
        by_hand = client.create_flow_run(deployments.ingest, state=Running())
        living = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(300)"],
            env={**os.environ, "PREFECT__FLOW_RUN_ID": str(alive.id)},
        )
        try:
            post(f"{prefect}/work_pools/digits/workers/heartbeat", json={"name": "another"}).raise_for_status()
            crashed_runs.mark_orphans("digits", "this")
            assert _state(client, dead) == StateType.RUNNING  # it may be the other worker's
            httpx.delete(f"{prefect}/work_pools/digits/workers/another").raise_for_status()
            crashed_runs.mark_orphans("digits", "this")
        finally:
            living.kill()
            living.wait()
        states = [_state(client, run) for run in (dead, pending, alive, queued, by_hand)]
    assert states == [
        StateType.CRASHED,
        StateType.CRASHED,
        StateType.RUNNING,
        StateType.SCHEDULED,
        StateType.RUNNING,
    ]


@pytest.mark.parametrize(
    ("name", "second"), [("Check labels", "AwaitingConcurrencySlot"), ("Retrain daily", "Cancelled")]
)
def test_one_check_waits_for_another_and_of_two_retrainings_the_second_is_cancelled(
    prefect: str, name: str, second: str
) -> None:
    deployments.register(settings_of(prefect))
    deployment = registered(prefect)[name]["id"]
    parameters = {"dataset": "0" * 16} if name == "Check labels" else {}
    with get_client(sync_client=True) as client:
        runs = [client.create_flow_run_from_deployment(deployment, parameters=parameters) for _ in range(2)]
        for run in runs:
            client.set_flow_run_state(run.id, Pending())  # as a worker proposes
        states = [client.read_flow_run(run.id).state for run in runs]
        client.set_flow_run_state(runs[0].id, Crashed(), force=True)
    assert [state and state.name for state in states] == ["Pending", second]


def test_a_crashed_check_of_labels_is_started_again_by_the_next_worker_but_not_for_ever(prefect: str) -> None:
    deployments.register(settings_of(prefect))
    checks, train = (registered(prefect)[name]["id"] for name in ("Check labels", "Train a recipe"))
    with get_client(sync_client=True) as client:
        check = client.create_flow_run_from_deployment(checks, parameters={"dataset": "0" * 16})
        asked_at = client.read_flow_run(check.id).expected_start_time
        other = client.create_flow_run_from_deployment(train)
        for run in (check, other):
            client.set_flow_run_state(run.id, Running(), force=True)
        crashed_runs.mark_orphans("digits", "this")
        for attempt in range(1, crashed_runs.MAX_ATTEMPTS + 1):
            crashed_runs.start_again("check-labels")
            found = client.read_flow_run(check.id)
            assert found.run_count == attempt and found.expected_start_time == asked_at
            assert _state(client, check) == (
                StateType.SCHEDULED if attempt < crashed_runs.MAX_ATTEMPTS else StateType.CRASHED
            )
            for state in (Running(), Crashed()):
                client.set_flow_run_state(check.id, state, force=True)
        assert _state(client, other) == StateType.CRASHED
    assert registered(prefect)["Check labels"]["global_concurrency_limit"]["active_slots"] == 0


def test_a_run_whose_heartbeats_end_is_marked_wherever_it_ran(prefect: str) -> None:
    automation = deployments.missing_heartbeats(timedelta(seconds=10))
    automation.name = "soon"
    automation.create()
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(deployments.ingest, state=Running())
        emit_event(deployments.HEARTBEAT_EVENT, resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"})
        deadline = time.monotonic() + 120
        while _state(client, run) != StateType.CRASHED:
            assert time.monotonic() < deadline
            time.sleep(1)


def _state(client: Any, run: FlowRun) -> StateType:
    state = client.read_flow_run(run.id).state
    assert state is not None
    kind: StateType = state.type
    return kind
