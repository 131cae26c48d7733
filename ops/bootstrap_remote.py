"""`python -m ops.bootstrap_remote`: a platform whose flows run elsewhere trains its first champion; ends when there is one."""

import time

from digits.data import datasets
from digits.settings import load_settings
from flows import deployments
from flows.deployments import NotRegistered
from models.registry_reader import RegistryReader, RegistryUnreachable
from ops.bootstrap import first_source


def main() -> None:
    """Wait for MLflow, Prefect and the deployments, then train; a training that leaves no champion ends it with the reason."""
    settings = load_settings()
    registry, ended = RegistryReader(settings.mlflow_tracking_uri), ""
    while True:
        try:
            if registry.version() is not None:
                return
            if ended:
                raise SystemExit(
                    f"the first training left no champion: {ended}; read its run in the Prefect UI and start again"
                )
            deployments.wait_for_prefect(settings.prefect_api_url)
            data = None if datasets.current(settings.datasets) else first_source(settings)
            ended = deployments.run_retraining("first champion", data)
        except (RegistryUnreachable, NotRegistered):
            time.sleep(2)


if __name__ == "__main__":
    main()
