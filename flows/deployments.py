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

from digits import logs
from digits.settings import Settings, load_settings
from flows import crashed_runs
from flows.approve import DEPLOYMENT as APPROVAL
from flows.approve import EXPIRY, approve, hold
from flows.backfill import backfill
from flows.check_labels import DEPLOYMENT as LABEL_CHECK
from flows.check_labels import check_labels
from flows.ingest import ingest
from flows.monitor import DRIFT_EVENT, LABELS_EVENT, monitor
from flows.replay import replay
from flows.retrain import retrain
from flows.score import score
from flows.sweep import sweep
from flows.terminal import is_up
from flows.train import train

RETRAINING, MONITORING = "Retrain daily", "Monitor hourly"
# By the name on the page of the deployments: the flow, what it is about, and what starts it and what it does, in Markdown.
DEPLOYED: dict[str, tuple[Any, str, str]] = {
    RETRAINING: (
        retrain,
        "training",
        "Takes in the inbox and labelled feedback, trains `DIGITS_RECIPE`, and promotes the version if the gate finds it better than "
        "the champion, or asks (`DIGITS_PROMOTION`). Starts **daily at 03:00 UTC**, and when monitoring reports **drift** or enough "
        "**new labels**, unless a retraining ended within `DIGITS_RETRAIN_COOLDOWN_HOURS`. One at a time.",
    ),
    MONITORING: (
        monitor,
        "monitoring",
        "Compares the champion's answers of the last 24 hours with its baseline and reports drift, accuracy and traffic. Starts **every "
        "hour**; sends alerts, and starts a retraining where the images changed or labels arrived.",
    ),
    APPROVAL: (
        approve,
        "approval",
        "Asks whether a version that the gate would promote becomes the champion. A retraining starts it where `DIGITS_PROMOTION=ask`; "
        "its run is **suspended until somebody resumes it** with an answer, for `DIGITS_APPROVAL_HOURS` at most.",
    ),
    EXPIRY: (
        hold,
        "approval",
        "Holds the versions that waited for approval longer than `DIGITS_APPROVAL_HOURS`, and opens the runs that ask where one is missing. "
        "Starts **every hour** where `DIGITS_PROMOTION=ask`.",
    ),
    LABEL_CHECK: (
        check_labels,
        "data",
        "Looks for training images whose label is probably wrong, because networks that were not trained on them see another digit; they "
        "wait for an auditor at `/label`. A retraining and an ingested data set start it. One to three minutes for MNIST; **one at a time**, "
        "the next waits.",
    ),
    "Report on past days": (
        backfill,
        "monitoring",
        "Computes the reports of past windows again. By hand, as `digits monitor --from … --to …`.",
    ),
    "Train a recipe": (
        train,
        "training",
        "Trains a recipe once and registers the version as a candidate. By hand, as `digits train`.",
    ),
    "Search a recipe": (
        sweep,
        "training",
        "Searches recipes within a time budget, and lets the gate judge the best. By hand, as `digits sweep`.",
    ),
    "Train a run again": (
        replay,
        "training",
        "Trains a run again from its recipe, data and seed, and compares the weights. By hand, as `digits replay`.",
    ),
    "Ingest a data set": (
        ingest,
        "data",
        "Reads, checks and stores a data set, from which the next retraining starts. By hand, as `digits ingest`.",
    ),
    "Answer a file": (
        score,
        "data",
        "Answers every row of a Kaggle `test.csv` or a Parquet file. By hand, as `digits score`.",
    ),
}
# Deployments of earlier versions; their schedules would start the same flows.
FORMER_NAMES = (
    *("retrain/daily", "monitor/hourly"),
    *(f"{name}/{name}" for name in ("backfill", "train", "ingest", "score", "replay", "sweep")),
)
MAX_CONCURRENT_RUNS = "2"  # of one worker
MAX_HEARTBEAT_GAP = timedelta(minutes=10)  # Prefect sends a heartbeat every three minutes
HEARTBEAT_EVENT = "prefect.flow-run.heartbeat"
# A suspended run has no process that could send a heartbeat; once it is resumed, it sends them again.
LAST_EVENTS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")}
# Prefect's client waits 2, 4, 8 … seconds between its attempts: 510 s in all. With its own 5 a server that restarts for more
# than a minute fails the runs that end meanwhile, and cancels those whose concurrency lease it cannot renew.
CLIENT_RETRIES = {"PREFECT_CLIENT_MAX_RETRIES": "8"}


def deployments(settings: Settings) -> list[Any]:  # of Prefect's RunnerDeployment, typed as if it might be a coroutine
    """Every flow that can be started in the Prefect UI; retraining daily and on events of monitoring, monitoring and the end of approvals hourly.

    Of each of these one run at a time; events start no retraining during its cooldown. A check of labels waits for the one before it.
    """
    one_run = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    low_priority = {"job_variables": job_variables(settings, is_low_priority=True)}
    special: dict[str, dict[str, Any]] = {
        RETRAINING: {
            "schedule": Cron("0 3 * * *", timezone="UTC"),
            "parameters": {"reason": "schedule"},
            "triggers": [_retraining_trigger()],
            "concurrency_limit": one_run,
            **low_priority,
        },
        LABEL_CHECK: {
            "concurrency_limit": ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            **low_priority,
        },
        MONITORING: {"schedule": Cron("0 * * * *", timezone="UTC"), "concurrency_limit": one_run},
        # A trigger would forget the runs that wait: Prefect creates it anew with every start of a worker.
        EXPIRY: {
            "schedule": Cron("30 * * * *", timezone="UTC", active=settings.promotion == "ask"),
            "concurrency_limit": one_run,
        },
    }
    pool: dict[str, Any] = {
        "work_pool_name": settings.work_pool,
        "job_variables": job_variables(settings),
        "entrypoint_type": EntrypointType.MODULE_PATH,  # importable wherever the package is installed: nothing is pulled
    }
    return [
        flow.to_deployment(name, tags=[tag], description=text, **pool | special.get(name, {}))
        for name, (flow, tag, text) in DEPLOYED.items()
    ]


def job_variables(settings: Settings, is_low_priority: bool = False) -> dict[str, Any]:
    """What the pool needs for each run: a process's folder, where `.env` lies, and command, or a container's image.

    Without the command Prefect's worker would copy its own working directory over that of the process. The priority is for
    processes only: the resources of a container are those that the pool gives it.
    """
    environment = {**CLIENT_RETRIES, **logs.prefect_variables(settings.log_format)}
    given = {**settings.job_variables, "env": {**environment, **settings.job_variables.get("env", {})}}
    if settings.work_pool_type != "process":
        return {"image": settings.flows_image, **given}
    root, python = Path(__file__).parent.parent, quote(sys.executable)
    lowered = f"{python} -m flows.low_priority " if is_low_priority else ""
    return {"working_dir": str(root), "command": f"{lowered}{python} -m prefect.engine", **given}


def _retraining_trigger() -> DeploymentEventTrigger:
    """Retrain when monitoring finds drift or enough new labels, for the reason and with the report that the event names."""
    return DeploymentEventTrigger(
        name="drift or new labels: retrain",
        expect={DRIFT_EVENT, LABELS_EVENT},
        match={"prefect.resource.id": "digits.version.*"},
        parameters={
            "reason": "{{ event.payload.reason }}",
            "report": "{{ event.payload.report }}",
            "cooldown": True,
        },
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
        for name in FORMER_NAMES:
            with suppress(ObjectNotFound):
                client.delete_deployment(client.read_deployment_by_name(name).id)
    for deployment in deployments(settings):
        deployment.apply()
    if known:
        automation.id = known[0].id
    automation.update() if known else automation.create()


def missing_heartbeats(gap: timedelta = MAX_HEARTBEAT_GAP) -> Automation:
    """The automation that marks a run as crashed when it sent heartbeats and then neither sends more nor ends or is suspended, on any machine."""
    return Automation(
        name="no heartbeat: crashed",
        trigger=EventTrigger(
            after={HEARTBEAT_EVENT},
            expect={HEARTBEAT_EVENT, *LAST_EVENTS},
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
            run: Any = run_deployment(f"retrain/{RETRAINING}", parameters=parameters, **options)
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
    # Nothing else would ask for it again: the next retraining on the same data trains nothing.
    crashed_runs.start_again(check_labels.name)
    os.environ.update(logs.prefect_variables(settings.log_format))
    worker = ["prefect", "worker", "start", "--pool", settings.work_pool, "--name", name, "--install-policy", "never"]
    os.execv(sys.executable, [sys.executable, "-m", *worker, "--limit", MAX_CONCURRENT_RUNS])


def wait_for_prefect(api: str) -> None:
    """Wait without limit: the server may still be starting, or be unreachable on another machine."""
    while not is_up(api):
        time.sleep(1)


if __name__ == "__main__":
    main()
