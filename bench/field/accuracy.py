"""Accuracy by few labels, silence and refusals, hourly looks at unchanged accuracy, and estimates without labels."""

from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from bench.field.scenario import Finding, Scenario
from digits import intervals
from digits.data import perturbations, sources
from digits.images import Images, Labels
from digits.reference import Reference
from digits.settings import load_settings
from digits.storage.audit import AuditedAnswer
from digits.storage.predictions import PredictionWindow
from monitoring import accuracy, drift, image_statistics, sequential, traffic
from monitoring.accuracy import ALPHA, History, Observations
from monitoring.traffic import HOURS, WEEK, Hours

REFERENCE_SIZE = 5_000
GOOD = 0.98
START = datetime(2026, 1, 5, tzinfo=UTC)

Values = NDArray[np.float64]


def expected(random: np.random.Generator, count: int, value: float = GOOD) -> Values:
    """The least expected accuracy of versions of one true accuracy, each with its own reference sample."""
    right = random.binomial(REFERENCE_SIZE, value, count)
    bounds = {r: intervals.lower_bound(r, REFERENCE_SIZE, ALPHA / 2) for r in np.unique(right).tolist()}
    return np.array([bounds[r] for r in right.tolist()])


@lru_cache(100_000)
def worse_before(right: int, count: int, reference_right: int) -> bool:
    """The rule without the guard: 50 labels of one window, and the interval of the difference (Newcombe 1998) below zero."""
    if count < accuracy.MIN_LABELS:
        return False
    found, known = intervals.wilson(right, count), intervals.wilson(reference_right, REFERENCE_SIZE)
    return found.value + float(np.hypot(found.high - found.value, known.value - known.low)) < known.value


def delays(repetitions: int, fallen: float, good_days: int, per_day: int) -> Values:
    """Days from a fall to the first label after which the verdict is *worse*; negative for a false one, infinite after a year."""
    random = np.random.default_rng(3)
    days = np.repeat(np.arange(good_days + 365), per_day)
    accuracies = np.where(days < good_days, GOOD, fallen)
    values = (random.random((len(days), repetitions)) < accuracies[:, None]).astype(float)
    least = expected(random, repetitions)
    crossed = sequential.log_e_values(values, days, least) >= np.log(2 / ALPHA)
    looks = [
        _first_worse(values[:, n], days, least[n], np.flatnonzero(crossed[:, n])[: 10 * per_day])
        for n in range(repetitions)
    ]
    return np.array(looks) / per_day - good_days


def _first_worse(values: Values, days: NDArray[np.int64], least: float, looks: NDArray[np.int64]) -> float:
    """The number of labels at the first of these looks at which the whole rule says *worse*, not the e-value alone."""
    for look in (looks + 1).tolist():
        seen = Observations(values[:look], days[:look], np.ones(look, np.int64))
        if accuracy.judge(seen, least)[0] == "worse":
            return float(look)
    return np.inf


def _late(found: Values) -> float:
    return float(np.quantile(found, 0.95, method="higher"))


def few_labels(repetitions: int) -> Finding:
    """A fall to 70 % with ten labels a day; the window of 24 hours never has fifty."""
    found = {good_days: delays(repetitions, 0.7, good_days, 10) for good_days in (0, 60)}
    smaller = {fallen: delays(repetitions, fallen, 60, 10) for fallen in (0.9, 0.95)}
    random = np.random.default_rng(2)
    windows = random.binomial(10, 0.7, repetitions * 30).tolist()
    before = sum(worse_before(right, 10, int(GOOD * REFERENCE_SIZE)) for right in windows)
    told = (f"{days} good days: {np.median(one):.1f} days, 95 % within {_late(one):.1f}" for days, one in found.items())
    cost = (
        f"a fall to {fallen:.0%} takes {np.median(one):.0f} days, 95 % within {_late(one):.0f}"
        for fallen, one in smaller.items()
    )
    return Finding(
        f"98 → 70 %, 10 labels a day: told in {before} of {len(windows):,} daily windows",
        f"told after {'; after '.join(told)} (median of {repetitions})",
        f"{'; '.join(cost)} (after 60 good days, 10 labels a day)",
        before == 0 and all(_late(one) <= 7 for one in found.values()),
    )


def unchanged(repetitions: int) -> Finding:
    """Years of unchanged accuracy, with a look after every label: more looks than hourly ones."""
    random = np.random.default_rng(4)
    before = float(np.mean([_false_days(random) for _ in range(repetitions)]))
    alone, together = _false_years_of_writers(random, repetitions)
    years = {f"{per_day} labels a day": _false_years(random, repetitions, per_day) for per_day in (10, 100)}
    years["5 writers a day with 10 labels each"] = together
    return Finding(
        f"100 labels a day, windows of 24 hours, hourly looks: 'worse' on {before:.1%} of unchanged days; each label of a writer "
        f"as if independent: 'worse' in {alone} of {repetitions} years",
        f"'worse' in {', in '.join(f'{count} of {repetitions} years at {kind}' for kind, count in years.items())}",
        "",
        before > 0.05 and all(count <= 0.01 * repetitions for count in years.values()),
    )


def _false_days(random: np.random.Generator, days: int = 10) -> float:
    """The share of unchanged days on which the rule without the guard says *worse* at one look at least."""
    counts = random.poisson(100 / 24, 24 * (days + 1))
    right, reference_right = random.binomial(counts, GOOD), int(random.binomial(REFERENCE_SIZE, GOOD))
    looks = [
        worse_before(int(right[end - 24 : end].sum()), int(counts[end - 24 : end].sum()), reference_right)
        for end in range(24, 24 * (days + 1))
    ]
    return float(np.reshape(looks, (days, 24)).any(axis=1).mean())


def _false_years(random: np.random.Generator, years: int, per_day: int) -> int:
    """Years in which the e-value ever exceeds the limit; a verdict also needs a bad newest stretch, so there are not more."""
    days = np.repeat(np.arange(365), per_day)
    values = (random.random((len(days), years)) < GOOD).astype(float)
    return _crossed(values, days, expected(random, years))


def _false_years_of_writers(random: np.random.Generator, years: int) -> tuple[int, int]:
    """The same where the accuracy of each day's five writers varies: with each label alone, and with a writer's mean."""
    writers = random.beta(5 * GOOD, 5 * (1 - GOOD), (5 * 365, years))
    right = random.random((10, *writers.shape)) < writers
    least = expected(random, years)
    labels = right.swapaxes(0, 1).reshape(-1, years).astype(float)
    alone = _crossed(labels, np.repeat(np.arange(365), 50), least)
    return alone, _crossed(right.mean(axis=0), np.repeat(np.arange(365), 5), least)


def _crossed(values: Values, days: NDArray[np.int64], least: Values) -> int:
    return int((sequential.log_e_values(values, days, least).max(axis=0) >= np.log(2 / ALPHA)).sum())


def silence(repetitions: int) -> Finding:
    """Traffic that stops, is refused or becomes uncertain at any hour of a week, at volumes around a hundred answers a day."""
    random = np.random.default_rng(5)
    months = dict.fromkeys((20, 100, 1_000, 10_000), repetitions // 4)
    false = sum(_false_month(random, per_day) for per_day, count in months.items() for _ in range(count))
    found, told = [], True
    for change in ("silence", "refusals", "doubt"):
        for per_day in (50, 1_000):
            hours = [_hours_until_told(random, per_day, change) for _ in range(repetitions)]
            told &= bool(np.quantile(hours, 0.95) <= 72)
            found.append(
                f"{change} at {per_day} a day after {np.median(hours):.0f} h (95 % {np.quantile(hours, 0.95):.0f})"
            )
    return Finding(
        "an alert needs 100 answers in the window: silence, refusals of everything and 50 answers a day are never told",
        f"{', '.join(found)}; false alarms in {false} of {sum(months.values())} months with hourly looks",
        "",
        told and false <= 0.01 * sum(months.values()),
    )


def _rates(per_day: int, hours: int) -> Values:
    """Requests per hour, from a Monday on: on weekends a fifth, at night a tenth; `per_day` on average."""
    hour = np.arange(hours)
    weekly = np.where(hour // 24 % 7 >= 5, 0.2, 1.0) * np.where((hour % 24 < 7) | (hour % 24 >= 20), 0.1, 1.0)
    return np.asarray(weekly * per_day * 7 / weekly[:WEEK].sum())


def _counted(answered: NDArray[np.int64], refused: NDArray[np.int64], uncertain: NDArray[np.int64], end: int) -> Hours:
    part = slice(end - HOURS, end)
    given, not_given = answered[part], refused[part]
    return Hours(given + not_given, given, not_given, given, uncertain[part], {422: not_given})


def _events(hours: Hours) -> set[str]:
    now = START + timedelta(days=365)
    return {problem.event for problem in traffic.problems(hours, now, START, now)}


def _false_month(random: np.random.Generator, per_day: int) -> bool:
    """Whether there is any alert in 30 days of Poisson traffic; on some platforms they are among the first five weeks."""
    rates = _rates(per_day, HOURS + 720)
    rates[: int(random.integers(0, 2) * HOURS)] = 0
    answered, refused = random.poisson(0.98 * rates), random.poisson(0.02 * rates)
    uncertain = random.binomial(answered, 0.03)
    return any(_events(_counted(answered, refused, uncertain, end)) for end in range(HOURS + 1, HOURS + 721))


def _hours_until_told(random: np.random.Generator, per_day: int, change: str) -> float:
    """Hours from a change at a random hour of the week to its alert at an hourly look; infinite after a week."""
    rates = _rates(per_day, HOURS + 2 * WEEK)
    start = HOURS + int(random.integers(WEEK))
    after = np.arange(len(rates)) >= start
    requests = random.poisson(rates)
    refused = random.binomial(requests, np.where(after & (change == "refusals"), 1.0, 0.02))
    answered = np.where(after & (change == "silence"), 0, requests - refused)
    uncertain = random.binomial(answered, np.where(after & (change == "doubt"), 0.3, 0.03))
    refused = np.where(after & (change == "silence"), 0, refused)
    kind = {"silence": "no traffic", "refusals": "refusals", "doubt": "uncertainty"}[change]
    for hours in range(1, WEEK + 1):
        if kind in _events(_counted(answered, refused, uncertain, start + hours)):
            return hours
    return np.inf


@cache
def _digits() -> tuple[Images, Labels]:
    settings = load_settings()
    test = sources.read("mnist", mnist=settings.mnist, cache=settings.downloads).test
    order = np.random.default_rng(0).permutation(len(test.images))
    return test.images[order], test.labels[order]


@cache
def _weights() -> Values:
    """Ridge regression onto the ten digits, on the first 4,000 test images."""
    images, labels = (array[:4_000] for array in _digits())
    pixels = _pixels(images)
    return np.asarray(np.linalg.solve(pixels.T @ pixels + 20 * np.eye(785), pixels.T @ np.eye(10)[labels]))


def _pixels(images: Images) -> Values:
    return np.pad(images.reshape(len(images), 784) / 255, ((0, 0), (0, 1)), constant_values=1)


def _predict_proba(images: Images) -> NDArray[np.float32]:
    scores = 8 * _pixels(images) @ _weights()
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float32)


def _window(images: Images, labels: Labels) -> PredictionWindow:
    """An hour of unlabelled answers to unknown clients; the labels are the truth, which no auditor has given."""
    count, probabilities = len(images), _predict_proba(images)
    return PredictionWindow(
        ids=[str(n) for n in range(count)],
        at=[START] * count,
        versions=["1"] * count,
        routes=["/classify"] * count,
        clients=[""] * count,
        images=images,
        digits=probabilities.argmax(axis=1).astype(np.uint8),
        probabilities=probabilities,
        labels=np.full(count, -1, np.int8),
        audited=np.zeros(count, np.bool_),
        digit_scores=np.full(count, np.nan, np.float32),
        places=[None] * count,
    )


def estimates(repetitions: int) -> Finding:
    """The estimate from the confidence, on windows of 500 changed MNIST digits without a label of their day."""
    random = np.random.default_rng(6)
    images, labels = (array[4_000:] for array in _digits())
    reference = Reference(images[:3_000], labels[:3_000], _predict_proba(images[:3_000]))
    axes = image_statistics.principal_axes(reference.images)
    known = drift.table(reference.images, reference.probabilities, axes)
    limits = drift.thresholds(known, 500)
    errors, plain_errors, told_wrong = list[float](), list[float](), 0
    for repetition in range(repetitions):
        chosen = random.choice(3_000, 500, replace=False) + 3_000
        sent = images[chosen]
        if repetition % 2:
            sent = perturbations.shift(sent, float(random.uniform(2, 4)))
        window = _window(sent, labels[chosen])
        columns = drift.compare(known, drift.table(sent, window.probabilities, axes), limits)
        history = History(_audited(random, reference), START)
        found = accuracy.assess(reference, window, None, history, any(column.drifted for column in columns))
        error = (found.estimate or 0) - float((window.digits == labels[chosen]).mean())
        (errors if repetition % 2 else plain_errors).append(error)
        told_wrong += "estimate" in found.message and abs(error) > 0.05
    return Finding(
        f"printed on {len(errors)} windows of shifted images, {100 * np.mean(errors):.0f} points too high on average",
        f"an estimate that is more than 5 points wrong is told in {told_wrong} of {repetitions} windows; where nothing changed "
        f"its error is {100 * np.mean(np.abs(plain_errors)):.1f} points",
        "while images drift there is no estimate, only what labels say",
        bool(np.mean(errors) > 0.1) and told_wrong <= 0.02 * repetitions,
    )


def _audited(random: np.random.Generator, reference: Reference) -> list[AuditedAnswer]:
    """Sixty labelled answers from before the images changed."""
    rows = random.choice(len(reference), 60, replace=False)
    right = reference.probabilities.argmax(axis=1) == reference.labels
    confidences = reference.probabilities.max(axis=1)
    return [AuditedAnswer(str(row), START, "", bool(right[row]), float(confidences[row])) for row in rows.tolist()]


SCENARIOS = (
    Scenario(3, "Ten labels a day: a fall is told within days", few_labels),
    Scenario(8, "Unchanged accuracy, looked at hourly for a year", unchanged),
    Scenario(11, "Silence, refusals and doubt", silence),
    Scenario(14, "The label-free estimate on drifted images", estimates),
)
