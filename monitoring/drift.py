"""Drift detection: whether two samples of images and answers differ by more than chance.

Every column (image statistics, block means, principal axes, confidence, whether there is no digit) is compared by its Kolmogorov-Smirnov distance, the
predicted digits by the largest change of one digit's share. The distribution of these scores without drift is simulated by the
multiplier bootstrap of the empirical process (van der Vaart & Wellner, Weak Convergence and Empirical Processes, 1996, section 2.9),
with one multiplier for each client where the clients are known and enough: images of one writer are not independent
(cluster bootstrap: Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Field & Welsh, JRSS-B 69, 2007).
The thresholds keep the chance of *any* false alarm near `ALPHA`, whatever the number and correlation of the columns. Evidently
gets the same scores and thresholds, so its report agrees.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from digits.images import Images
from monitoring import image_statistics, label_shift
from monitoring.diagnosis import Explanation, explain
from monitoring.image_statistics import STATISTICS, Columns, Values
from monitoring.samples import Sample

Tables = tuple[Columns, Columns]  # of what is expected and of the window: same names, one value per image
Noise = NDArray[np.float32]  # (resamples, points): deviations of distribution functions and shares by chance
Clients = Sequence[str] | NDArray[np.str_]  # who sent each image, "" where unknown; empty where images are independent
DIGIT = "digit"  # the column of predicted digits, 0 to 9; every other column is numeric
CONFIDENCE = "confidence"
NO_DIGIT_COLUMN = "no_digit"  # 1 where the version says that the image shows no digit, otherwise 0; of versions that have a digit score
ANSWER_UNITS = {CONFIDENCE: "probability", NO_DIGIT_COLUMN: "share of the images"}
MIN_COUNT = 100  # with fewer different images on either side there is no verdict
MIN_CLIENTS = 20  # effective number from which clients are resampled; with fewer, images count as independent
# The nominal chance of any false alarm in a window, half for images, half for digits. Of the 720 hourly looks of 30 days at most
# 0.72 are expected to be false alarms, whatever the overlap of the windows.
ALPHA = 0.001
RESAMPLES = 2000  # that estimate the thresholds
# Kolmogorov-Smirnov distances and changes of one digit's share: up to the smallest nothing is drift, from the strong on drift is strong.
SMALLEST_DISTANCE, SMALLEST_SHARE = 0.05, 0.02
STRONG_DISTANCE, STRONG_SHARE = 0.3, 0.15

_POINTS = 100  # of each distribution function, at quantiles
_MAX_UNITS = 2000  # images or clients that are resampled; a random choice of more has the same distribution
_TAIL = 0.1  # share of the resamples that the tail is fitted to


class Chance(NamedTuple):
    """Simulated deviations of the distribution functions of images that are independent, times the root of their number."""

    points: Mapping[str, Values]  # of the distribution function of each numeric column
    process: Noise


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
    clients: int | None = None  # effective number that was resampled; None where images count as independent
    explanations: tuple[Explanation, ...] = ()  # the most important first
    message: str


def detect(expected: Sample, current: Sample, tables: Tables | None = None, against: str = "reference") -> Drift:
    """Compare a window with what is expected; `tables` where they are measured already, `against` is its name in the message."""
    if min(len(current), len(expected)) < MIN_COUNT:
        found = f"{len(current)} different images and {len(expected)} of the {against}"
        few = f"Not enough data: {found}; at least {MIN_COUNT} of each are needed."
        return Drift(verdict="not enough data", message=few)
    before, now = tables or measure(expected, current)
    clients = expected.clients, current.clients
    limits = thresholds(before, len(current), now, *clients)
    sides = [count for count in map(effective_clients, clients) if count]
    columns = compare(before, now, limits)
    drifted = [column for column in columns if column.drifted]
    known: dict[str, Any] = {"columns": columns, "clients": round(min(sides)) if sides else None}
    if not drifted:
        message = f"No drift: none of {len(columns)} columns differs from the {against}."
        return Drift(verdict="no drift", message=message, **known)
    only_label_shift = _only_label_shift(before, now, limits)
    explanations = explain(expected.images, current.images, before[DIGIT], now[DIGIT], only_label_shift)
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
        explanations=explanations,
        message=f"{'Strong' if strong else 'Slight'} drift in {len(drifted)} of {len(columns)} columns{reason}.",
        **known,
    )


def measure(expected: Sample, current: Sample) -> Tables:
    """The columns of both samples, along the principal axes of the expected images."""
    axes, both = image_statistics.principal_axes(expected.images), (expected, current)
    is_known = all(sample.no_digit is not None for sample in both)
    before, now = (
        table(sample.images, sample.probabilities, axes, sample.no_digit if is_known else None) for sample in both
    )
    return before, now


def table(
    images: Images, probabilities: NDArray[np.float32], axes: Values, no_digit: NDArray[np.bool_] | None = None
) -> Columns:
    """The columns of some images, also of their pixels along these axes, and of the model's answers to them."""
    projections = (images.reshape(len(images), -1) @ axes).T
    return {
        **image_statistics.measure(images),
        **{f"axis_{i}": values for i, values in enumerate(np.ascontiguousarray(projections), start=1)},
        **({} if no_digit is None else {NO_DIGIT_COLUMN: no_digit.astype(np.float64)}),
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
    unit = STATISTICS[name].unit if name in STATISTICS else ANSWER_UNITS.get(name, "grey levels")
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


def thresholds(
    expected: Columns,
    count: int,
    current: Columns | None = None,
    expected_clients: Clients = (),
    current_clients: Clients = (),
    alpha: float = ALPHA,
    chance: Chance | None = None,
) -> dict[str, float]:
    """The score that each column of a window of `count` images must exceed to be drift.

    The simulated scores, standardised by their mean and standard deviation, share one threshold: the 1 - alpha quantile of their
    maximum (max-T of Westfall and Young, Resampling-Based Multiple Testing, 1993), so correlated columns cost nothing. The
    predicted digits have an alpha of their own, because they alone show a label shift, and weakly. Where either side has at
    least `MIN_CLIENTS` effective clients they are resampled too, and the larger thresholds hold. `chance` is that of `expected`
    where it is known already.
    """
    points, process = chance or simulate(expected)
    size = len(expected[DIGIT])
    limits = _limits(process * np.float32(np.sqrt(1 / size + 1 / count)), points, alpha)
    numbers = effective_clients(expected_clients), effective_clients(current_clients)
    if current is not None and any(numbers):
        noise = _noise(expected, points, expected_clients) if numbers[0] else process / np.float32(np.sqrt(size))
        noise = noise + _noise(current, points, current_clients if numbers[1] else (), seed=1)
        fewest = min(number for number in numbers if number)
        widened = noise * np.float32(_few_clients_factor(fewest, len(points), alpha))
        limits = np.maximum(limits, _limits(widened, points, alpha))
    return dict(zip([*points, DIGIT], limits.tolist(), strict=True))


def simulate(expected: Columns) -> Chance:
    """What chance does to independent images like these."""
    points = {name: _quantiles(values) for name, values in expected.items() if name != DIGIT}
    return Chance(points, _noise(expected, points, ()) * np.float32(np.sqrt(len(expected[DIGIT]))))


def effective_clients(clients: Clients) -> float | None:
    """The number of equally active clients that would vary as much (Kish, Survey Sampling, 1965); each unknown one counts alone.

    None where there are fewer than `MIN_CLIENTS`, or each sent one image: then images count as independent.
    """
    units = _units(clients)
    sizes = np.bincount(units) if len(units) else np.zeros(0)
    if not len(sizes) or sizes.max() == 1:
        return None
    number = float(sizes.sum() ** 2 / (sizes**2).sum())
    return number if number >= MIN_CLIENTS else None


def _units(clients: Clients) -> NDArray[np.int64]:
    """The number of the client of each image, 0 to n - 1; each image of an unknown client has a number of its own."""
    named = [client or f"\n{row}" for row, client in enumerate(clients)]
    return np.unique(np.array(named, np.str_), return_inverse=True)[1]


def _quantiles(values: Values) -> Values:
    return np.unique(np.quantile(values, (np.arange(_POINTS) + 0.5) / _POINTS, method="lower"))


def _noise(table: Columns, points: Mapping[str, Values], clients: Clients, seed: int = 0) -> Noise:
    """How far the distribution functions at these points and the shares of the digits are from the true ones by chance.

    Deviations from the sample's own functions are summed by client, or by image without clients, and multiplied by a standard
    normal number each.
    """
    random = np.random.default_rng(seed)
    size = len(table[DIGIT])
    units = _units(clients) if len(clients) else np.arange(size)
    count = int(units.max()) + 1
    chosen = np.sort(random.permutation(count)[:_MAX_UNITS])
    rows = np.flatnonzero(np.isin(units, chosen))
    parts = [table[name][rows, None] <= points[name] for name in points]
    indicators = np.hstack([*parts, table[DIGIT][rows, None] == np.arange(10)]).astype(np.float32)
    indicators -= indicators.mean(axis=0)
    if count < size:
        order = np.argsort(units[rows], kind="stable")
        starts = np.searchsorted(units[rows][order], chosen)
        indicators = np.add.reduceat(indicators[order], starts, axis=0)
    multipliers = random.standard_normal((RESAMPLES, len(chosen)), dtype=np.float32)
    noise: Noise = multipliers @ indicators * np.float32(np.sqrt(count / len(chosen)) / size)
    return noise


def _limits(noise: Noise, points: Mapping[str, Values], alpha: float) -> Values:
    """The thresholds of the numeric columns and, last, of the digits."""
    starts = np.cumsum([0, *(len(values) for values in points.values())])
    scores = np.maximum.reduceat(np.abs(noise), starts, axis=1).astype(np.float64)
    images = np.maximum(_max_t(scores[:, :-1], alpha / 2), SMALLEST_DISTANCE)
    digits = np.maximum(_max_t(scores[:, -1:], alpha / 2), SMALLEST_SHARE)
    return np.concatenate([images, digits])


def _max_t(scores: Values, alpha: float) -> Values:
    """The threshold of each column, from scores of shape (resamples, columns).

    The quantile lies beyond the resamples: a generalised Pareto distribution is fitted to the tail of the maxima (Pickands, Ann.
    Statist. 3, 1975; as for permutation tests in Knijnenburg et al., Bioinformatics 25, 2009).
    """
    from scipy.stats import genpareto  # 1 s

    mean, spread = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-9)
    maxima = ((scores - mean) / spread).max(axis=1)
    start = np.quantile(maxima, 1 - _TAIL)
    if alpha >= _TAIL:
        return mean + spread * np.quantile(maxima, 1 - alpha)
    shape, _, scale = genpareto.fit(maxima[maxima > start] - start, floc=0)
    return mean + spread * (start + genpareto.isf(alpha / _TAIL, shape, 0, scale))


def _few_clients_factor(clients: float, columns: int, alpha: float) -> float:
    """How much larger a quantile of Student's t is than one of the normal distribution at the level of one column.

    The variance between few clients is itself uncertain (Cameron, Gelbach & Miller, Rev. Econ. Stat. 90, 2008, use t too).
    """
    from scipy.stats import norm, t  # 1 s

    level = alpha / 2 / columns
    return float(t.isf(level, clients - 1) / norm.isf(level) * np.sqrt(clients / (clients - 1)))
