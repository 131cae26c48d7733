"""Whether production images differ from what the version was tested on, with thresholds calibrated for the window at hand.

Every column (image statistics, block means, principal axes, confidence) is compared by its Kolmogorov-Smirnov distance, the answers
by the largest change of one digit's share. What those distances are when nothing changed is found by drawing both sides from
the reference itself, at their actual sizes; the threshold keeps the chance of *any* false alarm at `alpha`, whatever the number
of columns and however they hang together. Evidently gets the same distances and thresholds, so its report agrees.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from digits.data.perturbations import weights_like
from digits.images import Images
from digits.reference import Reference
from digits.storage.predictions import Window
from monitoring import image_statistics
from monitoring.diagnosis import Cause, explain
from monitoring.image_statistics import Columns, Values

DIGIT = "digit"  # the column of answers, 0 to 9; every other column is numeric
CONFIDENCE = "confidence"


class DriftPolicy(BaseModel):
    """What counts as drift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(
        0.02, gt=0, lt=0.5, description="Chance of any false alarm in a window; half each for images and answers."
    )
    minimum_count: int = Field(100, ge=20, description="Fewer predictions than this are not judged.")
    resamples: int = Field(1000, ge=200, description="Draws from the reference that the thresholds rest on.")
    smallest_distance: float = Field(
        0.05, gt=0, le=1, description="A Kolmogorov-Smirnov distance up to this never matters."
    )
    smallest_share: float = Field(
        0.02, gt=0, le=1, description="A change of one digit's share up to this never matters."
    )
    strong_distance: float = Field(0.3, ge=0, le=1, description="From this distance on a drift is strong.")
    strong_share: float = Field(
        0.15, ge=0, le=1, description="From this change of one digit's share on a drift is strong."
    )
    seed: int = 0


class Column(BaseModel):
    """One column of the comparison; `before` and `now` are means in the column's unit, the share for the digit that changed most."""

    model_config = ConfigDict(frozen=True)

    name: str
    unit: str
    score: float  # a Kolmogorov-Smirnov distance, or the largest change of one digit's share: both 0 to 1
    threshold: float
    drifted: bool
    before: float
    now: float


class Drift(BaseModel):
    """The verdict on one window."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["drift", "no drift", "not enough data"]
    severity: Literal["none", "slight", "strong"]
    count: int
    reference_count: int
    drifted_share: float  # of the columns
    columns: tuple[Column, ...]  # most exceeding first; empty when there was not enough data
    causes: tuple[Cause, ...]  # what explains most first
    alpha: float
    message: str


def compare(reference: Reference, window: Window, policy: DriftPolicy | None = None) -> Drift:
    """Judges the window against the reference sample of the version that answered it."""
    policy = policy or DriftPolicy()
    if min(len(window), len(reference.images)) < policy.minimum_count:
        return _not_enough(reference, window, policy)
    before, now = tables(reference, window)
    limits = thresholds(before, len(window), policy)
    columns = judge(before, now, limits)
    drifted = {column.name for column in columns if column.drifted}
    mix_alone = DIGIT in drifted and _same_but_mix(before, now, limits)
    causes = explain(reference.images, window.images, before[DIGIT], now[DIGIT], mix_alone) if drifted else ()
    return Drift(
        verdict="drift" if drifted else "no drift",
        severity=_severity(columns, policy),
        count=len(window),
        reference_count=len(reference.images),
        drifted_share=len(drifted) / len(columns),
        columns=columns,
        causes=causes,
        alpha=policy.alpha,
        message=_message(columns, causes),
    )


def tables(reference: Reference, window: Window) -> tuple[Columns, Columns]:
    """The columns of the reference and of the window: same names, one value per image."""
    embedding = image_statistics.embed(reference.images)
    return (
        table(reference.images, reference.probabilities, embedding),
        table(window.images, window.probabilities, embedding),
    )


def table(images: Images, probabilities: NDArray[np.float32], embedding: image_statistics.Embedding) -> Columns:
    """The columns of some images and the answers to them."""
    answers = {
        CONFIDENCE: probabilities.max(axis=1).astype(np.float64),
        DIGIT: probabilities.argmax(axis=1).astype(np.float64),
    }
    return {**image_statistics.measure(images), **embedding.project(images), **answers}


def share_changes(reference: Values, current: Values) -> Values:
    """How much more often each digit is answered now, shape (10,), -1 to 1."""
    before, now = (np.bincount(digits.astype(int), minlength=10) / len(digits) for digits in (reference, current))
    return now - before


def score(name: str, reference: Values, current: Values) -> float:
    """The distance that this column is judged by."""
    return (
        float(np.abs(share_changes(reference, current)).max())
        if name == DIGIT
        else image_statistics.distance(reference, current)
    )


def judge(reference: Columns, current: Columns, limits: Mapping[str, float]) -> tuple[Column, ...]:
    """Every column against its threshold, the most exceeding first."""
    columns = [_column(name, reference[name], current[name], limits[name]) for name in reference]
    return tuple(sorted(columns, key=lambda column: column.score / column.threshold, reverse=True))


def _same_but_mix(before: Columns, now: Columns, limits: Mapping[str, float]) -> bool:
    """Whether no other column differs once each reference image counts as much as the window's answers have of its digit.

    A quarter is added to the thresholds, because weighted values tell less than as many plain ones.
    """
    weights = weights_like(before[DIGIT], now[DIGIT])
    others = (name for name in before if name != DIGIT)
    return all(image_statistics.distance(before[name], now[name], weights) <= 1.25 * limits[name] for name in others)


def _column(name: str, reference: Values, current: Values, limit: float) -> Column:
    value = score(name, reference, current)
    before, now, unit = float(reference.mean()), float(current.mean()), _unit(name)
    if name == DIGIT:
        digit = int(np.abs(share_changes(reference, current)).argmax())
        before, now, unit = float(np.mean(reference == digit)), float(np.mean(current == digit)), f"share of {digit}s"
    return Column(name=name, unit=unit, score=value, threshold=limit, drifted=value > limit, before=before, now=now)


def _unit(name: str) -> str:
    return "probability" if name == CONFIDENCE else image_statistics.UNITS.get(name, "grey levels")


def thresholds(reference: Columns, count: int, policy: DriftPolicy | None = None) -> dict[str, float]:
    """The score that each column of a window of this size must exceed to be drift.

    Both sides are drawn with replacement from the reference (its size, and the window's), and scored; the columns' scores,
    brought to one scale by their mean and standard deviation, share one limit: the 1 - alpha quantile of their maximum (max-T of
    Westfall and Young, Resampling-Based Multiple Testing, 1993). So columns that say the same cost nothing. The answers have an
    alpha of their own, because they alone see a change of the mix, which shows weakly.
    """
    policy = policy or DriftPolicy()
    names = [name for name in reference if name != DIGIT]
    distances, changes = _null(reference, names, count, policy)
    images = np.maximum(_limits(distances, policy.alpha / 2), policy.smallest_distance)
    answers = np.maximum(_limits(changes[:, None], policy.alpha / 2), policy.smallest_share)
    return dict(zip([*names, DIGIT], [*images.tolist(), *answers.tolist()], strict=True))


def _limits(scores: Values, alpha: float) -> Values:
    """One limit per column, from scores of shape (resamples, columns)."""
    mean, spread = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-9)
    return mean + spread * np.quantile(((scores - mean) / spread).max(axis=1), 1 - alpha)


def _null(reference: Columns, names: list[str], count: int, policy: DriftPolicy) -> tuple[Values, Values]:
    """Scores without any change: distances of shape (resamples, columns), largest share changes of shape (resamples,).

    A draw is how often each reference image came up, so a distribution function is a running sum over the sorted images:
    nothing is sorted or measured again.
    """
    random = np.random.default_rng(policy.seed)
    values = np.stack([reference[name] for name in names])
    size = values.shape[1]
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    last = np.ones(values.shape)  # of its equals: only there is the running sum the distribution function
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    digits = np.eye(10)[reference[DIGIT].astype(int)]
    distances, changes = np.empty((policy.resamples, len(names))), np.empty(policy.resamples)
    for draw in range(policy.resamples):
        now = np.bincount(random.integers(0, size, count), minlength=size) / count
        before = np.bincount(random.integers(0, size, size), minlength=size) / size
        distances[draw] = (np.abs(np.cumsum((now - before)[order], axis=1)) * last).max(axis=1)
        changes[draw] = np.abs((now - before) @ digits).max()
    return distances, changes


def _severity(columns: tuple[Column, ...], policy: DriftPolicy) -> Literal["none", "slight", "strong"]:
    drifted = [column for column in columns if column.drifted]
    limits = {DIGIT: policy.strong_share}
    strong = any(column.score >= limits.get(column.name, policy.strong_distance) for column in drifted)
    return "strong" if strong else "slight" if drifted else "none"


def _message(columns: tuple[Column, ...], causes: tuple[Cause, ...]) -> str:
    """The verdict in a sentence or two."""
    drifted = [column for column in columns if column.drifted]
    if not drifted:
        return f"No drift: none of {len(columns)} columns differs from the reference."
    if causes[0].kind != "unknown":
        return "; ".join(cause.message for cause in causes).capitalize() + "."
    changed = ", ".join(
        f"{column.name} {column.before:.3g} → {column.now:.3g} ({column.unit})" for column in drifted[:3]
    )
    return f"{len(drifted)} of {len(columns)} columns changed in a way we do not know: {changed}."


def _not_enough(reference: Reference, window: Window, policy: DriftPolicy) -> Drift:
    message = (
        f"Not enough data: {len(window)} predictions against {len(reference.images)} reference images, "
        f"at least {policy.minimum_count} of each are needed."
    )
    return Drift(
        verdict="not enough data",
        severity="none",
        count=len(window),
        reference_count=len(reference.images),
        drifted_share=0.0,
        columns=(),
        causes=(),
        alpha=policy.alpha,
        message=message,
    )
