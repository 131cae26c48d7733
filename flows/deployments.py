"""The schedules: `python -m flows.deployments` registers the flows with Prefect and runs them when they are due."""

import time
from typing import Any

import httpx
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.events import DeploymentEventTrigger
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from digits.settings import settings
from flows.backfill import backfill
from flows.ingest import ingest
from flows.monitor import DRIFT, LABELS, monitor
from flows.replay import replay
from flows.retrain import retrain
from flows.score import score
from flows.sweep import sweep
from flows.train import train


def deployments() -> list[Any]:  # of Prefect's RunnerDeployment, typed as if it might be a coroutine
    """Every flow that can be started in the Prefect UI; retraining daily and when monitoring asks for it, monitoring hourly.

    Never two at once; what an event starts rests for a while after the last retraining.
    """
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    module = EntrypointType.MODULE_PATH
    return [
        retrain.to_deployment(
            "daily",
            schedule=Cron("0 3 * * *", timezone="UTC"),
            parameters={"reason": "schedule"},
            triggers=[_asked_for()],
            concurrency_limit=alone,
            entrypoint_type=module,
        ),
        monitor.to_deployment(
            "hourly", schedule=Cron("0 * * * *", timezone="UTC"), concurrency_limit=alone, entrypoint_type=module
        ),
        backfill.to_deployment("backfill", entrypoint_type=module),
        train.to_deployment("train", entrypoint_type=module),
        ingest.to_deployment("ingest", entrypoint_type=module),
        score.to_deployment("score", entrypoint_type=module),
        replay.to_deployment("replay", entrypoint_type=module),
        sweep.to_deployment("sweep", entrypoint_type=module),
    ]


def _asked_for() -> DeploymentEventTrigger:
    """Retrain when monitoring finds drift or enough new labels, for the reason it gives."""
    return DeploymentEventTrigger(
        name="drift or new labels: retrain",
        expect={DRIFT, LABELS},
        match={"prefect.resource.id": "digits.version.*"},
        parameters={"reason": "{{ event.payload.reason }}", "cooldown": True},
    )


def main() -> None:
    """Register and run until told to stop; the schedules stay active in Prefect meanwhile."""
    _wait_for_prefect(f"{settings().prefect_api_url}/health")
    serve(*deployments(), pause_on_shutdown=False, limit=2, print_starting_message=False)


def _wait_for_prefect(health: str) -> None:
    """However long it takes: the server may be starting, or away on another machine."""
    while True:
        try:
            if httpx.get(health, timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)


if __name__ == "__main__":
    main()
