"""`digits train`: from a stored data set to a registered candidate; the heavy libraries are imported where they are used."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from digits.data import datasets
from digits.data.datasets import Dataset, Storage
from digits.reference import Reference
from digits.settings import load_settings
from flows.ingest import store
from models.recipes import COMPACT
from models.training import Recipe

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s
    from models.evaluation import Evaluation
    from models.registry import RegistryWriter
    from models.training import Trained

log = logging.getLogger("digits.train")


@flow(name="train")
def train(recipe: Recipe = COMPACT, data: str | None = None) -> str:
    """Train the recipe on SOURCE or else on the current data set, and register the result as a candidate; its version."""
    return train_on(store(data, load_settings()), recipe)


def train_on(fingerprint: str, recipe: Recipe, tags: Mapping[str, str] | None = None) -> str:
    """Train the recipe on a stored data set inside the current flow; the version of the candidate."""
    from models.registry import RegistryWriter

    settings = load_settings()
    registry = RegistryWriter(settings.mlflow_tracking_uri)
    dataset = prepare(settings.datasets, fingerprint, recipe)
    with registry.run(recipe, fingerprint, dataset, {**prefect_run(), **(tags or {})}) as run_id:
        registry.log_json(datasets.manifest(settings.datasets, fingerprint), "dataset.json")
        trained = fit(recipe, dataset, registry)
        evaluation = evaluate(trained, dataset)
        record(registry, trained, evaluation, dataset)
        version = register(registry, recipe, fingerprint, trained, evaluation, dataset, run_id)
    log.info("registered digits v%s: recipe %s, test accuracy %.4f", version, recipe.name, evaluation.accuracy)
    _publish(registry, version, run_id, evaluation)
    return version


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


def prefect_run() -> dict[str, str]:
    """A link from the MLflow run to the Prefect run."""
    return {"prefect_run": flow_run.ui_url or flow_run.id or ""}


def _publish(registry: "RegistryWriter", version: str, run_id: str, evaluation: "Evaluation") -> None:
    """What came out, on the page of the Prefect run."""
    rows = "\n".join(
        f"| {name} | {value:.4f} |" for name, value in evaluation.metrics.items() if name.startswith("test_")
    )
    link = load_settings().run_url(registry.experiment_id, run_id)
    text = f"# digits v{version}\n\n[MLflow run]({link})\n\n| metric | value |\n|---|---|\n{rows}\n"
    create_markdown_artifact(text, key="candidate", description=f"digits v{version}")
