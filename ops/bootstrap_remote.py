"""`python -m ops.bootstrap_remote`: trains the first champion of a platform whose flows run on other machines, then ends."""

import time

from digits.data import datasets
from digits.settings import load_settings
from flows import deployments
from models.registry_reader import RegistryReader, RegistryUnreachable
from ops.bootstrap import first_source


def main() -> None:
    """Wait for MLflow, Prefect and the deployments, then train; a training that leaves no champion is an error."""
    settings = load_settings()
    registry, outcome = RegistryReader(settings.mlflow_tracking_uri), ""
    while True:
        try:
            if registry.version() is not None:
                return
            if outcome:
                raise SystemExit(
                    f"the first training left no champion: {outcome}; read its run in the Prefect UI and start again"
                )
            deployments.wait_for_prefect(settings.prefect_api_url)
            data = None if datasets.current(settings.datasets) else first_source(settings)
            outcome = deployments.run_retraining("first champion", data)
        except RegistryUnreachable:
            time.sleep(2)


if __name__ == "__main__":
    main()
