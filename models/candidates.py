"""From a trained model to a registered version: its evaluation, its exported files, and what its MLflow run shows."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from digits.data import datasets
from digits.data.datasets import Dataset, DatasetStore
from digits.reference import Reference
from models import conformal, digit_score, evaluation, export, figures, model_card, model_store, onnx_model, training
from models.evaluation import Evaluation
from models.provenance import inputs_hash
from models.registry import RegistryWriter, card_content
from models.training import Recipe, TrainingResult

DATA_FACTS = ("source", "overlap_removed", "near_duplicates", "images", "images_per_digit")  # on a version's card
REFERENCE_SIZE = 5_000  # images of the reference sample


@dataclass(frozen=True, eq=False)
class Candidate:
    """A trained and exported model, complete without a server."""

    recipe: Recipe
    dataset: Dataset  # as the recipe splits it
    trained: TrainingResult
    evaluation: Evaluation  # on the test images
    card: dict[str, Any]  # without the run that it belongs to
    files: dict[str, bytes]


def split(dataset: Dataset, recipe: Recipe) -> Dataset:
    """The data set with the validation part that the recipe asks for."""
    if recipe.validation_fraction is None:
        return dataset
    return datasets.resplit(dataset, recipe.validation_fraction, recipe.seed)


def evaluate(recipe: Recipe, fingerprint: str, dataset: Dataset, trained: TrainingResult) -> Candidate:
    """Measure the model on the test images and export it; raises ValueError where the export answers differently.

    `fingerprint` names the stored data set, which `dataset` was split from.
    """
    evaluated = evaluation.evaluate(lambda images: training.predict_proba(trained.model, images), dataset.test)
    onnx = export.to_onnx(trained.model)
    served = onnx_model.load(onnx)
    exported = served.predict_proba(dataset.test.images)
    export.check_equal(exported, evaluated.probabilities, dataset.test.images)
    reference = Reference(dataset.test.images, dataset.test.labels, exported).sample(REFERENCE_SIZE, seed=0)
    learned = datasets.join(dataset.train, dataset.validation)
    held_out = served.predict(dataset.validation.images)
    calibrated = conformal.calibrate(held_out.probabilities, dataset.validation.labels)
    card = {
        "recipe": recipe.model_dump(mode="json"),
        "dataset": fingerprint,
        "data": {name: value for name, value in datasets.describe(dataset).items() if name in DATA_FACTS},
        "inputs": inputs_hash(fingerprint, recipe),
        "metrics": {**evaluated.metrics, **trained.metrics},
        "conformal": asdict(calibrated),
        "digit_threshold": digit_score.calibrate(held_out.digit_scores),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files = {
        "model.onnx": onnx,
        "model.keras": export.to_keras(trained.model),
        "reference.npz": reference.to_bytes(),
        "trained_on.npy": export.to_npy(datasets.digests(learned.images)),
    }
    return Candidate(recipe, dataset, trained, evaluated, card, files)


def log_results(registry: RegistryWriter, candidate: Candidate) -> None:
    """Log metrics, figures and the model's summary to the current MLflow run."""
    test, probabilities = candidate.dataset.test, candidate.evaluation.probabilities
    files: dict[str, Any] = {
        "model_summary.txt": candidate.trained.summary,
        "most_confused.txt": candidate.evaluation.confusions,
        "figures/learning_curves.png": figures.curves(candidate.trained.history),
        "figures/confusion_matrix.png": figures.confusion(candidate.evaluation.counts),
        "figures/samples.png": figures.samples(candidate.dataset.train),
        "figures/answers.png": figures.answers(test, probabilities),
        "figures/mistakes.png": figures.mistakes(test, probabilities),
    }
    registry.log_results(candidate.card["metrics"], {"weights_hash": candidate.trained.weights_hash}, files)


def register(registry: RegistryWriter, candidate: Candidate, run_id: str) -> str:
    """Register the candidate as a new version of the run, described by its model card. Returns the version."""
    card = _card(registry, candidate, run_id)
    version = registry.register(card, candidate.files)
    registry.describe(version, model_card.render(version, card, registry.version_tags(version)))
    return version


def digest(registry: RegistryWriter, candidate: Candidate, run_id: str) -> str:
    """The digest of the version that `register` makes."""
    return model_store.digest(card_content(_card(registry, candidate, run_id), candidate.files))


def _card(registry: RegistryWriter, candidate: Candidate, run_id: str) -> dict[str, Any]:
    return {**candidate.card, "run_id": run_id, "experiment_id": registry.experiment_id}


def train(registry: RegistryWriter, storage: DatasetStore, dataset: Dataset, recipe: Recipe) -> str:
    """Train on a stored data set and register the result, without Prefect. Returns the version."""
    prepared, manifest = split(dataset, recipe), datasets.manifest(storage, dataset.fingerprint)
    with registry.run(recipe, manifest, prepared, {}) as run_id:
        trained = training.fit(recipe, prepared, registry.log_epoch)
        candidate = evaluate(recipe, dataset.fingerprint, prepared, trained)
        log_results(registry, candidate)
        return register(registry, candidate, run_id)
