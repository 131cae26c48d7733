"""Detection power: how often the drift detector detects known perturbations, and how often it raises a false alarm."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digits.data.perturbations import PERTURBATIONS
from digits.images import Images, Labels, PredictProba
from digits.reference import Reference
from monitoring import drift, image_statistics, label_shift

# Rising amounts, of which the detector must detect the last; every other perturbation is injected at its default amount.
INJECTED = {
    "shift": (0.25, 0.5, 1.0),
    "rotate": (2.5, 5.0, 10.0),
    "dim": (0.95, 0.8, 0.6),
    "thicken": (0.25, 0.5, 1.0),
    "thin": (0.25, 0.5, 1.0),
    "noise": (2.5, 10.0, 20.0),
    "blur": (0.4, 0.5, 1.0),
}


class DetectionRate(NamedTuple):
    """In how many windows with one perturbation drift was detected; without a perturbation these are false alarms."""

    perturbation: str  # a name of PERTURBATIONS, `label_shift` or `none`
    description: str
    detected: int
    windows: int

    @property
    def rate(self) -> float:
        return self.detected / self.windows


def measure(
    reference: Reference,
    images: Images,
    labels: Labels,
    predict_proba: PredictProba,
    count: int,
    windows: int = 40,
) -> list[DetectionRate]:
    """The detection rates in windows of `count` digits drawn from held-out images; the first is the false-alarm rate.

    The held-out images must come from the same distribution as the reference and not be in it, nor in the training data.
    """
    random = np.random.default_rng(0)
    axes = image_statistics.principal_axes(reference.images)
    expected = drift.table(reference.images, reference.probabilities, axes)
    limits = drift.thresholds(expected, count)
    # Sorted once instead of for every window.
    expected = {name: np.sort(values) for name, values in expected.items()}

    def rate(name: str, description: str, images: Images, samples: Iterable[NDArray[np.int64]]) -> DetectionRate:
        table = drift.table(images, predict_proba(images), axes)
        tables = ({name: values[sample] for name, values in table.items()} for sample in samples)
        drifted = [any(column.drifted for column in drift.compare(expected, current, limits)) for current in tables]
        return DetectionRate(name, description, sum(drifted), len(drifted))

    def uniform(times: int) -> Iterator[NDArray[np.int64]]:
        return (random.choice(len(images), count, replace=count > len(images)) for _ in range(times))

    rates = [rate("none", "false alarms", images, uniform(5 * windows))]
    for name, perturbation in PERTURBATIONS.items():
        for amount in INJECTED.get(name, (perturbation.default,)):
            perturbed = perturbation.apply(images, amount)
            rates.append(rate(name, perturbation.describe(amount), perturbed, uniform(windows)))
    for factor in (1.25, 1.5, 2.0):
        samples = [label_shift.oversample(labels, window % 10, factor, count, random) for window in range(windows)]
        rates.append(rate("label_shift", f"one digit {factor:g} times as often", images, samples))
    return rates
