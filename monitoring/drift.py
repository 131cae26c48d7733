"""Drift detection: do production images differ from those the version was tested on, by more than chance in a window of this size?

Every column (image statistics, block means, principal axes, confidence) is compared by its Kolmogorov-Smirnov distance, the
predicted digits by the largest change of one digit's share. The distribution of these scores without drift is found by resampling
the reference at the two actual sizes; the thresholds keep the chance of *any* false alarm near `alpha`, whatever the number and
correlation of the columns. Evidently gets the same scores and thresholds, so its report agrees.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from digits.images import Images
from digits.reference import Reference
from digits.storage.predictions import PredictionWindow
from monitoring import image_statistics, label_shift
from monitoring.diagnosis import Explanation, explain
from monitoring.image_statistics import STATISTICS, Columns, Values

Tables = tuple[Columns, Columns]  # of the reference and of the window: same names, one value per image
DIGIT = "digit"  # the column of predicted digits, 0 to 9; every other column is numeric
CONFIDENCE = "confidence"
MIN_COUNT = 100  # with fewer predictions there is no verdict
ALPHA = 0.02  # the nominal chance of any false alarm, half for images, half for digits
RESAMPLES = 1000  # of the reference, which estimate the thresholds
# Kolmogorov-Smirnov distances and changes of one digit's share: up to the smallest nothing is drift, from the strong on drift is strong.
SMALLEST_DISTANCE, SMALLEST_SHARE = 0.05, 0.02
STRONG_DISTANCE, STRONG_SHARE = 0.3, 0.15


class Column(BaseModel, frozen=True):
    """The comparison of one column."""

    name: str
    unit: str
    score: float  # a Kolmogorov-Smirnov distance, or the largest change of one digit's share: both 0 to 1
    threshold: float
    drifted: bool
    reference: float  # the mean in the column's unit; of digits, the share of the one that changed most
    current: float


class Drift(BaseModel, frozen=True):
    """The drift of one window."""

    verdict: Literal["drift", "no drift", "not enough data"]
    severity: Literal["none", "slight", "strong"] = "none"
    drifted_share: float = 0.0  # of the columns
    columns: tuple[Column, ...] = ()  # by score over threshold, the largest first; empty without enough data
    explanations: tuple[Explanation, ...] = ()  # the most important first
    message: str


def detect(reference: Reference, window: PredictionWindow, tables: Tables | None = None) -> Drift:
    """Compare the window with the reference sample of its version; `tables` where they are measured already."""
    if min(len(window), len(reference)) < MIN_COUNT:
        found = f"{len(window)} predictions and {len(reference)} reference images"
        few = f"Not enough data: {found}; at least {MIN_COUNT} of each are needed."
        return Drift(verdict="not enough data", message=few)
    expected, current = tables or measure(reference, window)
    limits = thresholds(expected, len(window))
    columns = compare(expected, current, limits)
    drifted = [column for column in columns if column.drifted]
    if not drifted:
        message = f"No drift: none of {len(columns)} columns differs from the reference."
        return Drift(verdict="no drift", columns=columns, message=message)
    only_label_shift = _only_label_shift(expected, current, limits)
    explanations = explain(reference.images, window.images, expected[DIGIT], current[DIGIT], only_label_shift)
    strong = any(column.score >= (STRONG_SHARE if column.name == DIGIT else STRONG_DISTANCE) for column in drifted)
    if explanations[0].perturbation == "unknown":
        changed = (f"{found.name} {found.reference:.3g} → {found.current:.3g} ({found.unit})" for found in drifted[:3])
        reason = f" that no known perturbation explains: {', '.join(changed)}"
    else:
        reason = f", most likely: {'; '.join(explanation.message for explanation in explanations)}"
    return Drift(
        verdict="drift",
        severity="strong" if strong else "slight",
        drifted_share=len(drifted) / len(columns),
        columns=columns,
        explanations=explanations,
        message=f"{'Strong' if strong else 'Slight'} drift in {len(drifted)} of {len(columns)} columns{reason}.",
    )


def measure(reference: Reference, window: PredictionWindow) -> Tables:
    axes = image_statistics.principal_axes(reference.images)
    expected, current = (table(source.images, source.probabilities, axes) for source in (reference, window))
    return expected, current


def table(images: Images, probabilities: NDArray[np.float32], axes: Values) -> Columns:
    """The columns of some images, also of their pixels along these axes, and of the model's probabilities for them."""
    projections = (images.reshape(len(images), -1) @ axes).T
    return {
        **image_statistics.measure(images),
        **{f"axis_{i}": values for i, values in enumerate(np.ascontiguousarray(projections), start=1)},
        CONFIDENCE: probabilities.max(axis=1).astype(np.float64),
        DIGIT: probabilities.argmax(axis=1).astype(np.float64),
    }


def score(name: str, reference: Values, current: Values) -> float:
    """The score that is compared with the column's threshold."""
    if name == DIGIT:
        return float(np.abs(label_shift.change(reference, current)).max())
    return image_statistics.distance(reference, current)


def compare(reference: Columns, current: Columns, limits: Mapping[str, float]) -> tuple[Column, ...]:
    """Every column against its threshold, by score over threshold, the largest first."""
    columns = [_column(name, reference[name], current[name], limits[name]) for name in reference]
    return tuple(sorted(columns, key=lambda column: column.score / column.threshold, reverse=True))


def _column(name: str, reference: Values, current: Values, limit: float) -> Column:
    value = score(name, reference, current)
    unit = STATISTICS[name].unit if name in STATISTICS else "probability" if name == CONFIDENCE else "grey levels"
    if name == DIGIT:
        digit = int(np.abs(label_shift.change(reference, current)).argmax())
        reference, current, unit = reference == digit, current == digit, f"share of {digit}s"
    return Column(
        name=name,
        unit=unit,
        score=value,
        threshold=limit,
        drifted=value > limit,
        reference=float(reference.mean()),
        current=float(current.mean()),
    )


def _only_label_shift(reference: Columns, current: Columns, limits: Mapping[str, float]) -> bool:
    """Whether the digits drifted, and no other column once the reference is weighted to the window's shares of digits.

    The thresholds are raised by a quarter, because weighted values carry less information than as many unweighted ones.
    """
    weights = label_shift.importance_weights(reference[DIGIT], current[DIGIT])
    return score(DIGIT, reference[DIGIT], current[DIGIT]) > limits[DIGIT] and all(
        image_statistics.distance(values, current[name], weights) <= 1.25 * limits[name]
        for name, values in reference.items()
        if name != DIGIT
    )


def thresholds(reference: Columns, count: int) -> dict[str, float]:
    """The score that each column of a window of this size must exceed to be drift.

    Both sides are drawn with replacement from the reference (its size, and the window's), and scored; the columns' scores,
    standardised by their mean and standard deviation, share one threshold: the 1 - alpha quantile of their maximum (max-T of
    Westfall and Young, Resampling-Based Multiple Testing, 1993), so correlated columns cost nothing. The predicted digits have an
    alpha of their own, because they alone show a label shift, and weakly.
    """
    names = [name for name in reference if name != DIGIT]
    distances, changes = _resampled_scores(reference, names, count)
    images = np.maximum(_max_t(distances, ALPHA / 2), SMALLEST_DISTANCE)
    digits = np.maximum(_max_t(changes[:, None], ALPHA / 2), SMALLEST_SHARE)
    return dict(zip([*names, DIGIT], [*images.tolist(), *digits.tolist()], strict=True))


def _max_t(scores: Values, alpha: float) -> Values:
    """The threshold of each column, from scores of shape (resamples, columns)."""
    mean, spread = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-9)
    return mean + spread * np.quantile(((scores - mean) / spread).max(axis=1), 1 - alpha)


def _resampled_scores(reference: Columns, names: list[str], count: int) -> tuple[Values, Values]:
    """Scores without drift: distances of shape (resamples, columns), largest share changes of shape (resamples,).

    A resample is represented by how often it contains each reference image. A distribution function is then a running sum over
    the images in sorted order, and nothing is sorted or measured again.
    """
    random = np.random.default_rng(0)
    values = np.stack([reference[name] for name in names])
    size = values.shape[1]
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    # Of equal values only the last has the running sum that is the distribution function.
    last = np.ones(values.shape)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    digits = np.eye(10)[reference[DIGIT].astype(int)]
    distances, changes = np.empty((RESAMPLES, len(names))), np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        current = np.bincount(random.integers(0, size, count), minlength=size) / count
        expected = np.bincount(random.integers(0, size, size), minlength=size) / size
        distances[resample] = (np.abs(np.cumsum((current - expected)[order], axis=1)) * last).max(axis=1)
        changes[resample] = np.abs((current - expected) @ digits).max()
    return distances, changes
