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

import httpx
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
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.base import BaseWorker
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from digits.settings import Settings, load_settings
from flows import crashed_runs
from flows.backfill import backfill
from flows.ingest import ingest
from flows.monitor import DRIFT, LABELS, monitor
from flows.replay import replay
from flows.retrain import retrain
from flows.score import score
from flows.sweep import sweep
from flows.train import train

AT_ONCE = 2  # flow runs of one worker
SILENCE = timedelta(minutes=10)  # without a heartbeat, of which Prefect sends one in three minutes
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def deployments(settings: Settings) -> list[Any]:  # of Prefect's RunnerDeployment, typed as if it might be a coroutine
    """Every flow that can be started in the Prefect UI; retraining daily and when monitoring asks for it, monitoring hourly.

    Never two at once; what an event starts rests for a while after the last retraining.
    """
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    pool: dict[str, Any] = {
        "work_pool_name": settings.work_pool,
        "job_variables": job_variables(settings),
        "entrypoint_type": EntrypointType.MODULE_PATH,  # found wherever the package is: nothing is pulled
    }
    return [
        retrain.to_deployment(
            "daily",
            schedule=Cron("0 3 * * *", timezone="UTC"),
            parameters={"reason": "schedule"},
            triggers=[_asked_for()],
            concurrency_limit=alone,
            **pool,
        ),
        monitor.to_deployment("hourly", schedule=Cron("0 * * * *", timezone="UTC"), concurrency_limit=alone, **pool),
        *[flow.to_deployment(flow.name, **pool) for flow in (backfill, train, ingest, score, replay, sweep)],
    ]


def job_variables(settings: Settings) -> dict[str, Any]:
    """What the pool has to know of each run: a process's folder, where `.env` lies, and command, or a container's image.

    Without the command Prefect's worker would copy the folder it was started in over that of the process.
    """
    if settings.work_pool_type == "process":
        here = {
            "working_dir": str(Path(__file__).parent.parent),
            "command": f"{quote(sys.executable)} -m prefect.engine",
        }
        return {**here, **settings.job_variables}
    return {"image": settings.flows_image, **settings.job_variables}


def _asked_for() -> DeploymentEventTrigger:
    """Retrain when monitoring finds drift or enough new labels, for the reason it gives."""
    return DeploymentEventTrigger(
        name="drift or new labels: retrain",
        expect={DRIFT, LABELS},
        match={"prefect.resource.id": "digits.version.*"},
        parameters={"reason": "{{ event.payload.reason }}", "cooldown": True},
    )


def register(settings: Settings) -> None:
    """Put pool, deployments and the watch over heartbeats into Prefect, or bring those that are there up to date.

    Raises ValueError when the pool is of another type. The base job template of a pool that is there stays as it is.
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
        silent = silent_runs()
        known = client.read_automations_by_name(silent.name)
    for deployment in deployments(settings):
        deployment.apply()
    if known:
        silent.id = known[0].id
        silent.update()
    else:
        silent.create()


def silent_runs(silence: timedelta = SILENCE) -> Automation:
    """A run that began to send heartbeats and neither sends more nor ends has died, wherever it ran."""
    return Automation(
        name="no heartbeat: crashed",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {silence}: its process died")],
    )


def worker_of(settings: Settings, name: str) -> BaseWorker[Any, Any, Any]:
    """A worker of the pool; raises ValueError where the pool's kind of worker is not installed."""
    kind = BaseWorker.get_worker_class_from_type(settings.work_pool_type)
    if kind is None:
        raise ValueError(
            f"DIGITS_WORK_POOL_TYPE is {settings.work_pool_type!r}, whose worker is not installed here; "
            "run `uv sync --group pools` or the image of docker/flows.Dockerfile"
        )
    return kind(work_pool_name=settings.work_pool, name=name, limit=AT_ONCE)


class NotRegistered(LookupError):
    """The deployment is not in Prefect yet."""


def run_retraining(reason: str, data: str | None) -> str:
    """Run the deployed retraining to its end; the state it ended in with its message. Raises NotRegistered."""
    try:
        run: Any = run_deployment(
            "retrain/daily", parameters={"reason": reason, "data": data}, as_subflow=False, poll_interval=2
        )
    except ObjectNotFound as error:
        raise NotRegistered("the deployment retrain/daily is not registered in Prefect yet") from error
    return f"{run.state.name}, {run.state.message or 'no message'}" if run.state else "no state"


def main() -> None:
    """Register, then work for the pool until told to stop; the schedules stay active in Prefect meanwhile."""
    settings, name = load_settings(), socket.gethostname()
    wait_for_prefect(settings.prefect_api_url)
    register(settings)
    worker = worker_of(settings, name)
    if settings.work_pool_type == "process":
        crashed_runs.mark_orphans(settings.work_pool, name)
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(worker.start())


def wait_for_prefect(api: str) -> None:
    """However long it takes: the server may be starting, or away on another machine."""
    while True:
        try:
            if httpx.get(f"{api}/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)


if __name__ == "__main__":
    main()
