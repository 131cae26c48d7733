"""Evaluation of a model on test images: accuracy with its interval, calibration, precision and recall per digit, a corruption suite."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from digits import intervals
from digits.data.perturbations import PERTURBATIONS
from digits.images import Images, Labels, PredictProba, Split
from digits.intervals import Proportion

Probabilities = NDArray[np.float32]  # (n, 10)

# The perturbation and the amount of each corruption; another one here makes the metrics of earlier versions incomparable
CORRUPTIONS = {
    "shift_1": ("jitter", 1.0),
    "shift_2": ("jitter", 2.0),
    "shift_3": ("jitter", 3.0),
    "rotate_left": ("rotate", -15.0),
    "rotate_right": ("rotate", 15.0),
    "thicker": ("thicken", 1.5),
    "thinner": ("thin", 1.0),
    "noise": ("noise", 40.0),
    "blur": ("blur", 1.0),
    "contrast": ("dim", 0.5),
    "inverted": ("invert", 1.0),
}


@dataclass(frozen=True)
class Evaluation:
    """One model on the test images."""

    metrics: dict[str, float]
    probabilities: Probabilities  # (n, 10), of the test images
    counts: NDArray[np.int64]  # confusion, (10, 10)

    @property
    def confusions(self) -> str:
        """The most frequent mistakes, one line each."""
        return "".join(f"{true} read as {digit}: {count}\n" for true, digit, count in most_confused(self.counts))

    @property
    def accuracy(self) -> float:
        return self.metrics["test_accuracy"]


def evaluate(predict_proba: PredictProba, test: Split) -> Evaluation:
    """Every metric on the test images and on their corruptions; `predict_proba` maps (n, 28, 28) to (n, 10)."""
    probabilities = predict_proba(test.images)
    exact = accuracy(probabilities, test.labels)
    corrupted = corruption_accuracies(predict_proba, test)
    measured = {
        "test_accuracy": exact.value,
        "test_accuracy_low": exact.low,
        "test_accuracy_high": exact.high,
        "test_log_loss": log_loss(probabilities, test.labels),
        "test_ece": expected_calibration_error(probabilities, test.labels),
        "corruption_accuracy": float(np.mean(list(corrupted.values()))),
        **corrupted,
        **per_digit(probabilities, test.labels),
    }
    return Evaluation(measured, probabilities, confusion(probabilities, test.labels))


def corruption_accuracies(predict_proba: PredictProba, test: Split) -> dict[str, float]:
    """Accuracy on each corruption of the test images, as `corruption_<name>`."""
    suite = corruptions(test.images)
    return {f"corruption_{name}": accuracy(predict_proba(images), test.labels).value for name, images in suite.items()}


def accuracy(probabilities: Probabilities, labels: Labels) -> Proportion:
    """Share of images whose most probable digit is the true one."""
    return intervals.wilson(int((probabilities.argmax(axis=1) == labels).sum()), len(labels))


def log_loss(probabilities: Probabilities, labels: Labels) -> float:
    """Mean negative log of the true digit's probability, in nats."""
    exact = probabilities.astype(np.float64)
    return float(metrics.log_loss(labels, exact / exact.sum(axis=1, keepdims=True), labels=range(10)))


def expected_calibration_error(probabilities: Probabilities, labels: Labels, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Naeini et al. 2015)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    gaps = (probabilities.argmax(axis=1) == labels) - confidence
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(bin_of, gaps)).sum() / len(labels))


def confusion(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Counts, (10, 10): row = true digit, column = predicted digit."""
    return np.asarray(metrics.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(10)))


def per_digit(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """`precision_d` and `recall_d` for each digit d."""
    digits = probabilities.argmax(axis=1)
    precision, recall, *_ = metrics.precision_recall_fscore_support(labels, digits, labels=range(10), zero_division=0)
    named = {"precision": precision, "recall": recall}
    return {f"{name}_{digit}": float(values[digit]) for name, values in named.items() for digit in range(10)}


def most_confused(counts: NDArray[np.int64], max_pairs: int = 5) -> list[tuple[int, int, int]]:
    """(true digit, predicted digit, count), the most frequent mistakes first."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(mistakes, axis=None)[::-1][:max_pairs]
    pairs = [(int(index) // 10, int(index) % 10) for index in order]
    return [(true, predicted, int(mistakes[true, predicted])) for true, predicted in pairs if mistakes[true, predicted]]


def corruptions(images: Images) -> dict[str, Images]:
    """The corruption suite: every entry of `CORRUPTIONS` applied to the images."""

    def apply(name: str) -> Images:
        perturbation, amount = CORRUPTIONS[name]
        return PERTURBATIONS[perturbation].apply(images, amount)

    # NumPy releases the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(CORRUPTIONS, pool.map(apply, CORRUPTIONS), strict=True))
