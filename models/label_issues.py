"""Labels of training images that are probably wrong: those that out-of-sample probabilities contradict, by confident learning.

Each image is judged by a network that was not trained on it, one of `FOLDS` small ones that take half a minute each for MNIST. Confident
learning (Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels", as implemented by cleanlab)
estimates from these probabilities how many labels are wrong; so many of the least probable ones are suspected. Among labels that are almost
all right it finds too few, so every label whose calibrated probability is below `IMPROBABLE` is suspected, too.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.data import datasets, splitting
from digits.data.datasets import Dataset
from digits.images import Images, Labels, Split
from digits.storage.feedback import digest
from digits.storage.suspected_labels import Suspect
from models import provenance
from models.architectures import Convolutional
from models.training import Recipe

log = logging.getLogger("digits.label_issues")

FOLDS = 3
MIN_IMAGES = 5_000  # with fewer, small networks are wrong more often than labels are
MIN_ACCURACY = 0.9  # out of sample; below it, the probabilities say little about labels
IMPROBABLE = 0.05
HELD_OUT = 500  # images of each training part, to calibrate on
MIN_SEEN, MAX_EPOCHS = 40_000, 12  # images that a network sees at least, again and again; epochs at most
RECIPE = Recipe(
    name="label-check",
    architecture=Convolutional(filters=(16, 32), kernels=(5, 5), strides=(2, 2), dense=96, batch_norm=True),
    optimizer="adamw",
    learning_rate=6e-3,
    schedule="cosine",
    weight_decay=1e-2,
    epochs=1,
    batch_size=64,
)


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """The suspected labels of a data set, the least probable first."""

    images: Images  # (n, 28, 28)
    labels: Labels  # (n,), that the data set has
    predicted: Labels  # (n,)
    probabilities: NDArray[np.float32]  # (n,), of the label that the data set has
    places: Sequence[tuple[str, int]]  # of each image: the part of the data set and the row
    checked: int  # number of labels that were checked
    accuracy: float  # out of sample, against the labels of the data set

    def __len__(self) -> int:
        return len(self.places)

    @property
    def message(self) -> str:
        share = f"{len(self)} of {self.checked:,} training images have a label that is probably wrong"
        return f"{share}; out-of-sample predictions agree with {self.accuracy:.2%} of the labels"

    def suspects(self) -> list[Suspect]:
        """As the label queue stores them."""
        rows = zip(self.images, self.labels, self.predicted, self.probabilities, strict=True)
        return [Suspect(image.tobytes(), int(label), int(digit), float(p)) for image, label, digit, p in rows]

    def as_json(self) -> dict[str, Any]:
        found = [
            {"part": part, "row": row, **one._asdict(), "image": digest(one.image)}
            for (part, row), one in zip(self.places, self.suspects(), strict=True)
        ]
        return {"checked": self.checked, "accuracy": self.accuracy, "suspected": found}


def find(dataset: Dataset, seed: int = 0) -> LabelIssues | None:
    """The suspected labels among the training and validation images; None, with a sentence in the log, where they cannot be judged."""
    split = datasets.join(dataset.train, dataset.validation)
    if not are_enough(len(split)):
        return None
    log.info("checking %s labels with networks that were not trained on their images …", f"{len(split):,}")
    probabilities = out_of_sample(split, seed)
    accuracy = float((probabilities.argmax(axis=1) == split.labels).mean())
    if accuracy < MIN_ACCURACY:
        log.warning(
            "labels are not checked: out-of-sample predictions agree with %.1f %% of them, at least %.0f %% are needed",
            100 * accuracy,
            100 * MIN_ACCURACY,
        )
        return None
    rows = suspected(split.labels, probabilities)
    parts = [("train", row) for row in range(len(dataset.train))]
    parts += [("validation", row) for row in range(len(dataset.validation))]
    return LabelIssues(
        images=split.images[rows],
        labels=split.labels[rows],
        predicted=probabilities[rows].argmax(axis=1).astype(np.uint8),
        probabilities=probabilities[rows, split.labels[rows]],
        places=[parts[row] for row in rows],
        checked=len(split),
        accuracy=accuracy,
    )


def are_enough(count: int) -> bool:
    """Whether the labels of so many training images can be judged; says so in the log where they cannot."""
    if count < MIN_IMAGES:
        log.info("labels are not checked: %d training images, at least %d are needed", count, MIN_IMAGES)
    return count >= MIN_IMAGES


def inputs_hash(fingerprint: str) -> str:
    """A hash of all that decides what is found in a data set: its content, the libraries, and the code that finds it."""
    return provenance.inputs_hash(fingerprint, RECIPE, Path(__file__))


def from_json(dataset: Dataset, found: Mapping[str, Any]) -> LabelIssues:
    """What `as_json` made of the suspected labels of this data set."""
    rows, splits = found["suspected"], dataset.splits()
    places = [(one["part"], one["row"]) for one in rows]
    images = [splits[part].images[row] for part, row in places]
    return LabelIssues(
        images=np.array(images, np.uint8).reshape(-1, *dataset.train.images.shape[1:]),
        labels=np.array([one["label"] for one in rows], np.uint8),
        predicted=np.array([one["predicted"] for one in rows], np.uint8),
        probabilities=np.array([one["probability"] for one in rows], np.float32),
        places=places,
        checked=found["checked"],
        accuracy=found["accuracy"],
    )


def out_of_sample(split: Split, seed: int = 0) -> NDArray[np.float32]:
    """Calibrated probabilities (n, 10) of each image from a network that was not trained on it."""
    folds = np.random.default_rng(seed).permutation(len(split)) % FOLDS
    probabilities = np.empty((len(split), 10), np.float32)
    for fold in range(FOLDS):
        own = folds == fold
        rest = np.flatnonzero(~own)
        learned, held_out = rest[HELD_OUT:], rest[:HELD_OUT]
        train, validation, test = (splitting.pick(split, rows) for rows in (learned, held_out, np.flatnonzero(own)))
        probabilities[own] = predictions_on_test(Dataset(train, validation, test, "label check"), seed + fold)
    return probabilities


def predictions_on_test(dataset: Dataset, seed: int) -> NDArray[np.float32]:
    """Probabilities (n, 10) of the test images from a small network that was trained on the others."""
    from models import training

    epochs = min(MAX_EPOCHS, math.ceil(MIN_SEEN / len(dataset.train)))
    trained = training.fit(RECIPE.model_copy(update={"seed": seed, "epochs": epochs}), dataset)
    return training.predict_proba(trained.model, dataset.test.images)


def suspected(labels: Labels, probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows of the labels that are probably wrong, the least probable first, from out-of-sample probabilities (n, 10)."""
    from cleanlab.filter import find_label_issues  # 2 s, with pandas and scikit-learn

    given, exact = labels.astype(np.int64), probabilities.astype(np.float64)
    of_label = exact[np.arange(len(given)), given]
    is_suspected = find_label_issues(given, exact, filter_by="low_self_confidence", n_jobs=1) | (of_label < IMPROBABLE)
    rows: NDArray[np.int64] = np.flatnonzero(is_suspected)
    return rows[np.argsort(of_label[rows], kind="stable")]
