"""`digits train`: from a stored data set to a registered candidate; the heavy libraries are imported where they are used."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.storage import registrations
from flows.ingest import load_dataset
from flows.progress import progress_of
from flows.tasks import publish, run_url, server_task, task
from models.connections import Platform
from models.recipes import COMPACT
from models.training import EpochMetrics, Recipe

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s
    from models.candidates import Candidate
    from models.registry import RegistryWriter
    from models.training import TrainingResult

log = logging.getLogger("digits.train")


@flow(name="train")
def train(recipe: Recipe = COMPACT, data: str | None = None) -> str:
    """Train the recipe on SOURCE or else on the current data set, and register the result. Returns the version."""
    platform = Platform()
    dataset = server_task(load_dataset)(platform, data)
    return train_on(platform, dataset, recipe)


def train_on(
    platform: Platform,
    dataset: Dataset,
    recipe: Recipe,
    tags: Mapping[str, str] | None = None,
    drift_report: Path | None = None,
) -> str:
    """Train the recipe on a stored data set inside the current flow, for the drift that the report in the folder shows.

    Returns the version of the candidate.
    """
    from models import candidates

    registry, engine, fingerprint = platform.registry, platform.engine, dataset.fingerprint
    prepared, manifest = task(candidates.split)(dataset, recipe), datasets.manifest(platform.datasets, fingerprint)
    with registry.run(recipe, manifest, prepared, {**prefect_run(), **(tags or {})}) as run_id:
        if drift_report:
            server_task(registry.log_folder)(drift_report, "drift_report")
        trained = task(fit)(registry, recipe, prepared)
        candidate = task(candidates.evaluate)(recipe, fingerprint, prepared, trained)
        server_task(candidates.log_results)(registry, candidate)
        # First, so that every version of this platform is recorded where the process dies in between.
        server_task(registrations.put)(engine, candidates.digest(registry, candidate, run_id))
        version = server_task(candidates.register)(registry, candidate, run_id)
    accuracy = candidate.evaluation.accuracy
    log.info("registered digits v%s: recipe %s, test accuracy %.4f", version, recipe.name, accuracy)
    links = {
        "run": ("run in MLflow", platform.settings.run_url(registry.experiment_id, run_id)),
        "mlflow": (f"digits v{version} in MLflow", platform.settings.version_url(version)),
    }
    publish("candidate", f"digits v{version}", _markdown(version, candidate), links=links)
    return version


def fit(registry: "RegistryWriter", recipe: Recipe, dataset: Dataset) -> "TrainingResult":
    """Train, with a point on the curves in MLflow and progress in Prefect for each epoch."""
    from models import training

    with progress_of(recipe) as progress:

        def on_epoch(epoch: int, metrics: EpochMetrics) -> None:
            registry.log_epoch(epoch, metrics)
            progress.report(epoch, metrics)

        return training.fit(recipe, dataset, on_epoch)


def prefect_run() -> dict[str, str]:
    """The tag that links an MLflow run to the Prefect run."""
    return {"prefect_run": run_url() or ""}


def _markdown(version: str, candidate: "Candidate") -> str:
    metrics = candidate.evaluation.metrics.items()
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in metrics if name.startswith("test_"))
    return f"# digits v{version}: {candidate.recipe.name}\n\n| metric | value |\n|---|---|\n{rows}"
