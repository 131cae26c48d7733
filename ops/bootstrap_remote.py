"""`python -m ops.bootstrap_remote`: has a platform whose flows run elsewhere train its first champion; ends when there is one."""

import time
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from digits.data import datasets
from digits.settings import Settings, load_settings
from flows.deployments import wait_for_prefect
from models.registry_reader import RegistryReader, RegistryUnreachable
from ops.bootstrap import first_source


def main() -> None:
    """Wait for MLflow, Prefect and the deployments, then train; a training that leaves no champion ends it with the reason."""
    settings = load_settings()
    run: FlowRun | None = None
    while True:
        try:
            if RegistryReader(settings.mlflow_tracking_uri).version() is not None:
                return
            if run is None:
                run = train(settings)
                continue
        except (RegistryUnreachable, ObjectNotFound):  # nothing is registered yet
            time.sleep(2)
            continue
        ended = f": {run.state.name}, {run.state.message or 'no message'}" if run.state else ""
        raise SystemExit(
            f"the first training left no champion{ended}; read its run in the Prefect UI, mend it and start again"
        )


def train(settings: Settings) -> FlowRun:
    """The end of a retraining on the pool, on the current data set, MNIST, or where neither can be had the bundled digits.

    Raises ObjectNotFound as long as the deployment is not registered.
    """
    wait_for_prefect(settings.prefect_api_url)
    data = None if datasets.current(settings.datasets) else first_source(settings)
    parameters = {"reason": "first champion", "data": data}
    run: Any = run_deployment(
        "retrain/daily", parameters=parameters, as_subflow=False, poll_interval=2
    )  # not a coroutine
    return run


if __name__ == "__main__":
    main()
