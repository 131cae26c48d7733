"""What a version is worth: metrics with intervals, calibration, per-digit figures, a corruption suite."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from digits import intervals
from digits.data.perturbations import PERTURBATIONS
from digits.images import Images, Labels, Split
from digits.intervals import Proportion

Probabilities = NDArray[np.float32]  # (n, 10)

# the perturbation and the amount of each corruption; another one here makes the metrics of earlier versions incomparable
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
    def digits(self) -> Labels:
        """The most probable digit of every test image, (n,)."""
        return self.probabilities.argmax(axis=1).astype(np.uint8)

    @property
    def confusions(self) -> str:
        """The most frequent mistakes, one line each."""
        return "".join(f"{true} read as {answered}: {n}\n" for true, answered, n in most_confused(self.counts))

    @property
    def accuracy(self) -> float:
        """On the test images."""
        return self.metrics["test_accuracy"]


def evaluate(answer: Callable[[Images], Probabilities], test: Split) -> Evaluation:
    """Everything measured on the test images and on their corruptions; `answer` maps (n, 28, 28) to (n, 10)."""
    probabilities = answer(test.images)
    exact = accuracy(probabilities, test.labels)
    corrupted = corruption_accuracies(answer, test)
    metrics = {
        "test_accuracy": exact.value,
        "test_accuracy_low": exact.low,
        "test_accuracy_high": exact.high,
        "test_log_loss": log_loss(probabilities, test.labels),
        "test_ece": expected_calibration_error(probabilities, test.labels),
        "corruption_accuracy": float(np.mean(list(corrupted.values()))),
        **corrupted,
        **per_digit(probabilities, test.labels),
    }
    return Evaluation(metrics, probabilities, confusion(probabilities, test.labels))


def corruption_accuracies(answer: Callable[[Images], Probabilities], test: Split) -> dict[str, float]:
    """Accuracy on each corruption of the test images, as `corruption_<name>`."""
    suite = corruptions(test.images)
    return {f"corruption_{name}": accuracy(answer(images), test.labels).value for name, images in suite.items()}


def corruption_accuracy(answer: Callable[[Images], Probabilities], test: Split) -> float:
    """The mean of the suite, the one figure for how much a model stands."""
    return float(np.mean(list(corruption_accuracies(answer, test).values())))


def accuracy(probabilities: Probabilities, labels: Labels) -> Proportion:
    """Share of images whose most probable digit is the true one."""
    return intervals.wilson(int((probabilities.argmax(axis=1) == labels).sum()), len(labels))


def log_loss(probabilities: Probabilities, labels: Labels) -> float:
    """Mean negative log of the true digit's probability, in nats."""
    likely = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(likely, 1e-12, 1)).mean())


def expected_calibration_error(probabilities: Probabilities, labels: Labels, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Naeini et al. 2015)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[bin_of == b].mean() - confidence[bin_of == b].mean()) * (bin_of == b).mean() for b in set(bin_of)]
    return float(sum(gaps))


def confusion(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Counts, (10, 10): row = true digit, column = answered digit."""
    counts: NDArray[np.int64] = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(10))
    return counts


def per_digit(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """`precision_d` and `recall_d` for each digit d."""
    precision, recall, _, _ = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=range(10), zero_division=0
    )
    return {
        f"{name}_{d}": float(of[d]) for name, of in (("precision", precision), ("recall", recall)) for d in range(10)
    }


def most_confused(counts: NDArray[np.int64], most: int = 5) -> list[tuple[int, int, int]]:
    """(true digit, answered digit, count), the most frequent mistakes first."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(mistakes, axis=None)[::-1][:most]
    pairs = [(int(i) // 10, int(i) % 10) for i in order]
    return [(true, answered, int(mistakes[true, answered])) for true, answered in pairs if mistakes[true, answered]]


def corruptions(images: Images) -> dict[str, Images]:
    """The corruption suite: every entry of `CORRUPTIONS` applied to the images."""

    def apply(name: str) -> Images:
        perturbation, amount = CORRUPTIONS[name]
        return PERTURBATIONS[perturbation].apply(images, amount)

    # NumPy releases the interpreter lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(CORRUPTIONS, pool.map(apply, CORRUPTIONS), strict=True))
