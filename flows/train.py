"""`digits train`: from a stored data set to a registered candidate; the heavy libraries are imported where they are used."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefect import flow
from prefect.runtime import flow_run

from digits.data import datasets
<<<<<<< HEAD
from digits.data.datasets import Dataset, Storage
from digits.reference import Reference
from digits.settings import load_settings
from flows.ingest import store
from models.recipes import COMPACT
from models.training import Recipe
=======
from digits.data.datasets import Dataset
from flows.connections import Platform
from flows.ingest import load_dataset
from flows.tasks import publish, server_task, task
from models.recipes import COMPACT, Recipe
>>>>>>> main

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s
    from models.candidates import Candidate

log = logging.getLogger("digits.train")


@flow(name="train")
def train(recipe: Recipe = COMPACT, data: str | None = None) -> str:
    """Train the recipe on SOURCE or else on the current data set, and register the result as a candidate; its version."""
    platform = Platform()
    dataset = server_task(load_dataset)(platform, data)
    return train_on(platform, dataset, recipe)


def train_on(platform: Platform, dataset: Dataset, recipe: Recipe, tags: Mapping[str, str] | None = None) -> str:
    """Train the recipe on a stored data set inside the current flow; the version of the candidate."""
    from models import candidates, training

    registry, fingerprint = platform.registry, dataset.fingerprint
    prepared = task(candidates.split)(dataset, recipe)
    with registry.run(recipe, fingerprint, prepared, {**prefect_run(), **(tags or {})}) as run_id:
        registry.log_json(datasets.manifest(platform.datasets, fingerprint), "dataset.json")
        trained = task(training.fit)(recipe, prepared, registry.log_epoch)
        candidate = task(candidates.evaluate)(recipe, fingerprint, prepared, trained)
        server_task(candidates.log_results)(registry, candidate)
        version = server_task(candidates.register)(registry, candidate, run_id)
    log.info(
        "registered digits v%s: recipe %s, test accuracy %.4f", version, recipe.name, candidate.evaluation.accuracy
    )
    publish("candidate", f"digits v{version}", _markdown(platform, version, run_id, candidate))
    return version


<<<<<<< HEAD
@task(cache_policy=NO_CACHE)
def prepare(storage: Storage, fingerprint: str, recipe: Recipe) -> Dataset:
    """The verified data set, split as the recipe wants it."""
    dataset = datasets.load(storage, fingerprint)
    if recipe.validation_fraction is None:
        return dataset
    return datasets.resplit(dataset, recipe.validation_fraction, recipe.seed)


@task(cache_policy=NO_CACHE)
def fit(recipe: Recipe, dataset: Dataset, registry: "RegistryWriter") -> "Trained":
    """The trained model, its learning curves logged on the way."""
    from models import training

    return training.fit(recipe, dataset, registry.log_epoch)


@task(cache_policy=NO_CACHE)
def evaluate(trained: "Trained", dataset: Dataset) -> "Evaluation":
    """Everything that is measured on the test images."""
    from models import evaluation, training

    return evaluation.evaluate(lambda images: training.forward(trained.model, images), dataset.test)


@task(cache_policy=NO_CACHE)
def record(registry: "RegistryWriter", trained: "Trained", evaluation: "Evaluation", dataset: Dataset) -> None:
    """Figures, pictures and the summary of the model, into the run."""
    from models import figures

    registry.log_metrics({**evaluation.metrics, **trained.metrics})
    registry.log_tags({"weights_hash": trained.weights_hash})
    registry.log_text(trained.summary, "model_summary.txt")
    registry.log_text(evaluation.confusions, "most_confused.txt")
    registry.log_figures(
        {
            "learning_curves": figures.curves(trained.history),
            "confusion_matrix": figures.confusion(evaluation.counts),
            "samples": figures.samples(dataset.train),
            "answers": figures.answers(dataset.test, evaluation.probabilities),
            "mistakes": figures.mistakes(dataset.test, evaluation.probabilities),
        }
    )


@task(cache_policy=NO_CACHE)
def register(
    registry: "RegistryWriter",
    recipe: Recipe,
    fingerprint: str,
    trained: "Trained",
    evaluation: "Evaluation",
    dataset: Dataset,
    run_id: str,
) -> str:
    """Export, prove the export equal on the test images, and register it with its reference sample; the version."""
    from models import conformal, export, onnx_model, provenance

    onnx = export.to_onnx(trained.model)
    answer = onnx_model.load(onnx).predict_proba
    exported = answer(dataset.test.images)
    export.check_equal(exported, evaluation.probabilities, dataset.test.images)
    reference = Reference(dataset.test.images, dataset.test.labels, exported)
    card = {
        "recipe": recipe.model_dump(mode="json"),
        "dataset": fingerprint,
        "inputs": provenance.inputs(fingerprint, recipe),
        "metrics": {**evaluation.metrics, **trained.metrics},
        "conformal": conformal.calibrate(answer(dataset.validation.images), dataset.validation.labels).to_card(),
        "run_id": run_id,
        "experiment_id": registry.experiment_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files = {
        "model.onnx": onnx,
        "model.keras": export.to_keras(trained.model),
        "reference.npz": reference.sample(5000, seed=0).to_bytes(),
        "trained_on.npy": export.to_npy(datasets.digests(datasets.join(dataset.train, dataset.validation).images)),
    }
    return registry.register(card, files)


=======
>>>>>>> main
def prefect_run() -> dict[str, str]:
    """The tag that links an MLflow run to the Prefect run."""
    return {"prefect_run": flow_run.ui_url or flow_run.id or ""}


def _markdown(platform: Platform, version: str, run_id: str, candidate: "Candidate") -> str:
    link = platform.settings.run_url(platform.registry.experiment_id, run_id)
    metrics = candidate.evaluation.metrics.items()
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in metrics if name.startswith("test_"))
    return f"# digits v{version}\n\n[MLflow run]({link})\n\n| metric | value |\n|---|---|\n{rows}"
