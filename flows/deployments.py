"""The schedules: `python -m flows.deployments` registers the flows with Prefect and runs them when they are due."""

import time
from typing import Any

import httpx
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from digits.settings import settings
from flows.ingest import ingest
from flows.monitor import monitor
from flows.replay import replay
from flows.retrain import retrain
from flows.score import score
from flows.sweep import sweep
from flows.train import train


def deployments() -> list[Any]:  # of Prefect's RunnerDeployment, typed as if it might be a coroutine
    """Every flow that can be started in the Prefect UI; retraining daily and monitoring hourly, never two at once."""
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    module = EntrypointType.MODULE_PATH
    return [
        retrain.to_deployment(
            "daily", schedule=Cron("0 3 * * *", timezone="UTC"), concurrency_limit=alone, entrypoint_type=module
        ),
        monitor.to_deployment(
            "hourly", schedule=Cron("0 * * * *", timezone="UTC"), concurrency_limit=alone, entrypoint_type=module
        ),
        train.to_deployment("by-hand", entrypoint_type=module),
        ingest.to_deployment("by-hand", entrypoint_type=module),
        score.to_deployment("by-hand", entrypoint_type=module),
        replay.to_deployment("by-hand", entrypoint_type=module),
        sweep.to_deployment("by-hand", entrypoint_type=module),
    ]


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
