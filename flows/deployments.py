"""The schedules: `python -m flows.deployments` registers the flows on a Prefect work pool and works for it."""

import asyncio
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Any

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments import run_deployment
from prefect.events import DeploymentEventTrigger, EventTrigger
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from digits.settings import Settings, load_settings
from flows import crashed_runs
from flows.backfill import backfill
from flows.ingest import ingest
from flows.monitor import DRIFT_EVENT, LABELS_EVENT, monitor
from flows.replay import replay
from flows.retrain import retrain
from flows.score import score
from flows.sweep import sweep
from flows.terminal import is_up
from flows.train import train

MAX_CONCURRENT_RUNS = "2"  # of one worker
MAX_HEARTBEAT_GAP = timedelta(minutes=10)  # Prefect sends a heartbeat every three minutes
HEARTBEAT_EVENT = "prefect.flow-run.heartbeat"
FINAL_EVENTS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
# Prefect's client waits 2, 4, 8 … seconds between its attempts: 510 s in all. With its own 5 a server that restarts for more
# than a minute fails the runs that end meanwhile, and cancels those whose concurrency lease it cannot renew.
CLIENT_RETRIES = {"PREFECT_CLIENT_MAX_RETRIES": "8"}


def deployments(settings: Settings) -> list[Any]:  # of Prefect's RunnerDeployment, typed as if it might be a coroutine
    """Every flow that can be started in the Prefect UI; retraining daily and on events of monitoring, monitoring hourly.

    Of retraining and of monitoring one run at a time; events start no retraining during its cooldown.
    """
    one_run = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    pool: dict[str, Any] = {
        "work_pool_name": settings.work_pool,
        "job_variables": job_variables(settings),
        "entrypoint_type": EntrypointType.MODULE_PATH,  # importable wherever the package is installed: nothing is pulled
    }
    return [
        retrain.to_deployment(
            "daily",
            schedule=Cron("0 3 * * *", timezone="UTC"),
            parameters={"reason": "schedule"},
            triggers=[_retraining_trigger()],
            concurrency_limit=one_run,
            **pool | {"job_variables": job_variables(settings, is_low_priority=True)},
        ),
        monitor.to_deployment("hourly", schedule=Cron("0 * * * *", timezone="UTC"), concurrency_limit=one_run, **pool),
        *[flow.to_deployment(flow.name, **pool) for flow in (backfill, train, ingest, score, replay, sweep)],
    ]


def job_variables(settings: Settings, is_low_priority: bool = False) -> dict[str, Any]:
    """What the pool needs for each run: a process's folder, where `.env` lies, and command, or a container's image.

    Without the command Prefect's worker would copy its own working directory over that of the process. The priority is for
    processes only: the resources of a container are those that the pool gives it.
    """
    given = {**settings.job_variables, "env": {**CLIENT_RETRIES, **settings.job_variables.get("env", {})}}
    if settings.work_pool_type != "process":
        return {"image": settings.flows_image, **given}
    root, python = Path(__file__).parent.parent, quote(sys.executable)
    lowered = f"{python} -m flows.low_priority " if is_low_priority else ""
    return {"working_dir": str(root), "command": f"{lowered}{python} -m prefect.engine", **given}


def _retraining_trigger() -> DeploymentEventTrigger:
    """Retrain when monitoring finds drift or enough new labels, for the reason that the event carries."""
    return DeploymentEventTrigger(
        name="drift or new labels: retrain",
        expect={DRIFT_EVENT, LABELS_EVENT},
        match={"prefect.resource.id": "digits.version.*"},
        parameters={"reason": "{{ event.payload.reason }}", "cooldown": True},
    )


def register(settings: Settings) -> None:
    """Create or update the work pool, the deployments and the automation for missing heartbeats in Prefect.

    Raises ValueError when the pool is of another type. The base job template of an existing pool is kept.
    """
    template = asyncio.run(get_default_base_job_template_for_infrastructure_type(settings.work_pool_type))
    pool = WorkPoolCreate(name=settings.work_pool, type=settings.work_pool_type, base_job_template=template or {})
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(pool)
        existing = client.read_work_pool(settings.work_pool)
        if existing.type != settings.work_pool_type:
            raise ValueError(
                f"the work pool {settings.work_pool!r} is of type {existing.type}, not {settings.work_pool_type}; "
                "set DIGITS_WORK_POOL to another name"
            )
        automation = missing_heartbeats()
        known = client.read_automations_by_name(automation.name)
    for deployment in deployments(settings):
        deployment.apply()
    if known:
        automation.id = known[0].id
    automation.update() if known else automation.create()


def missing_heartbeats(gap: timedelta = MAX_HEARTBEAT_GAP) -> Automation:
    """The automation that marks a run as crashed when it sent heartbeats and then neither sends more nor ends, on any machine."""
    return Automation(
        name="no heartbeat: crashed",
        trigger=EventTrigger(
            after={HEARTBEAT_EVENT},
            expect={HEARTBEAT_EVENT, *FINAL_EVENTS},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=gap,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {gap}: its process died")],
    )


def run_retraining(reason: str, recipe: str, data: str | None = None, timeout_seconds: float | None = None) -> str:
    """Run the deployed retraining once it is registered, and wait for its end, at most `timeout_seconds`; returns its state and message."""
    parameters = {"reason": reason, "recipe": recipe, "data": data}
    options: dict[str, Any] = {"timeout": timeout_seconds, "as_subflow": False, "poll_interval": 2}
    while True:
        with suppress(ObjectNotFound):
            run: Any = run_deployment("retrain/daily", parameters=parameters, **options)
            return f"{run.state.name}, {run.state.message or 'no message'}" if run.state else "no state"
        time.sleep(2)


def main() -> None:
    """Register the flows, then become a worker of the pool; the schedules stay active in Prefect when it is stopped."""
    # what this process and its flow runs write is for their user only
    os.umask(0o077)
    settings, name = load_settings(), socket.gethostname()
    wait_for_prefect(settings.prefect_api_url)
    register(settings)
    if settings.work_pool_type == "process":
        crashed_runs.mark_orphans(settings.work_pool, name)
    worker = ["prefect", "worker", "start", "--pool", settings.work_pool, "--name", name, "--install-policy", "never"]
    os.execv(sys.executable, [sys.executable, "-m", *worker, "--limit", MAX_CONCURRENT_RUNS])


def wait_for_prefect(api: str) -> None:
    """Wait without limit: the server may still be starting, or be unreachable on another machine."""
    while not is_up(api):
        time.sleep(1)


if __name__ == "__main__":
    main()
