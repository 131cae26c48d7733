"""`digits train`: from a stored data set to a registered candidate; the heavy libraries are imported where they are used."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefect import flow
from prefect.runtime import flow_run

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.storage import registrations
from flows.ingest import load_dataset
from flows.tasks import publish, server_task, task
from models.connections import Platform
from models.recipes import COMPACT
from models.training import Recipe

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s
    from models.candidates import Candidate

log = logging.getLogger("digits.train")


@flow(name="train")
def train(recipe: Recipe = COMPACT, data: str | None = None) -> str:
    """Train the recipe on SOURCE or else on the current data set, and register the result. Returns the version."""
    platform = Platform()
    dataset = server_task(load_dataset)(platform, data)
    return train_on(platform, dataset, recipe)


def train_on(platform: Platform, dataset: Dataset, recipe: Recipe, tags: Mapping[str, str] | None = None) -> str:
    """Train the recipe on a stored data set inside the current flow. Returns the version of the candidate."""
    from models import candidates, training

    registry, engine, fingerprint = platform.registry, platform.engine, dataset.fingerprint
    prepared, manifest = task(candidates.split)(dataset, recipe), datasets.manifest(platform.datasets, fingerprint)
    with registry.run(recipe, manifest, prepared, {**prefect_run(), **(tags or {})}) as run_id:
        trained = task(training.fit)(recipe, prepared, registry.log_epoch)
        candidate = task(candidates.evaluate)(recipe, fingerprint, prepared, trained)
        server_task(candidates.log_results)(registry, candidate)
        # First, so that every version of this platform is recorded where the process dies in between.
        server_task(registrations.put)(engine, candidates.digest(registry, candidate, run_id))
        version = server_task(candidates.register)(registry, candidate, run_id)
    accuracy = candidate.evaluation.accuracy
    log.info("registered digits v%s: recipe %s, test accuracy %.4f", version, recipe.name, accuracy)
    publish("candidate", f"digits v{version}", _markdown(platform, version, run_id, candidate))
    return version


def prefect_run() -> dict[str, str]:
    """The tag that links an MLflow run to the Prefect run."""
    return {"prefect_run": flow_run.ui_url or flow_run.id or ""}


def _markdown(platform: Platform, version: str, run_id: str, candidate: "Candidate") -> str:
    link = platform.settings.run_url(platform.registry.experiment_id, run_id)
    metrics = candidate.evaluation.metrics.items()
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in metrics if name.startswith("test_"))
    return f"# digits v{version}\n\n[MLflow run]({link})\n\n| metric | value |\n|---|---|\n{rows}"
