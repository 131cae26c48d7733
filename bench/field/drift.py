"""Drift in the field: traffic that stays different, picture files, forms, probes, writers, and hourly looks, with known truth."""

import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2
from sqlalchemy import Engine

from bench import harness
from bench.field.scenario import Finding, Scenario
from digits.data import perturbations
from digits.images import Images
from digits.reference import Reference
from digits.storage import database, feedback, predictions
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch
from monitoring import baseline, drift, image_statistics, label_shift, pictures, samples
from monitoring.samples import Sample

NAIVE_ALPHA = 0.02  # of one look, as before there was a budget for a month
REFERENCE = 5_000
HOURS = 24 * 30
PER_DAY = 1_000
PER_WRITER = 20


class Version:
    """Ridge regression onto the ten digits, with a softmax: fast, and nothing about drift depends on the model."""

    def __init__(self, images: Images, labels: NDArray[np.uint8]) -> None:
        pixels = _pixels(images)
        self.weights = np.linalg.solve(pixels.T @ pixels + 20 * np.eye(785), pixels.T @ np.eye(10)[labels])

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        scores = 8 * _pixels(images) @ self.weights
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: NDArray[np.float32] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    def answer(self, images: Images) -> tuple[NDArray[np.float32], None]:
        return self.predict_proba(images), None

    def sample(self, images: Images, clients: Sequence[str] = (), is_picture: bool = False) -> Sample:
        found = samples.of_images(images, self.predict_proba(images), is_picture)
        return Sample(found.images, found.probabilities, np.array(clients), found.is_picture) if len(clients) else found


def _pixels(images: Images) -> NDArray[np.float64]:
    return np.pad(images.reshape(len(images), 784) / 255, ((0, 0), (0, 1)), constant_values=1)


@cache
def world() -> tuple[Version, Reference, Images]:
    """A version, its reference sample, and 30,000 other digits of the same distribution."""
    dataset = harness.data()
    images = np.concatenate([dataset.train.images, dataset.test.images])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    order = np.random.default_rng(0).permutation(len(images))
    learned, tested, others, _ = np.split(order, [5_000, 5_000 + REFERENCE, 40_000])
    version = Version(images[learned], labels[learned])
    return version, Reference(images[tested], labels[tested], version.predict_proba(images[tested])), images[others]


def alarms(expected: Sample, windows: Iterable[Sample], with_clients: bool = True, alpha: float = drift.ALPHA) -> int:
    """In how many windows, all of one size, a column drifts; the thresholds of the first hold for all where nobody is known."""
    axes, found = image_statistics.principal_axes(expected.images), 0
    before = drift.table(expected.images, expected.probabilities, axes)
    limits: dict[str, float] = {}
    # Sorted once instead of for every window.
    ordered = {name: np.sort(values) for name, values in before.items()}
    chance = drift.simulate(before)
    for window in windows:
        now = drift.table(window.images, window.probabilities, axes)
        known: tuple[drift.Clients, drift.Clients] = (expected.clients, window.clients) if with_clients else ((), ())
        if not limits or (with_clients and window.clients[0]):
            limits = drift.thresholds(before, len(window), now, *known, alpha=alpha, chance=chance)
        found += any(column.drifted for column in drift.compare(ordered, now, limits))
    return found


def rate(count: int, of: int) -> str:
    return f"{count / of:.1%} of {of} windows"


def _draws(images: Images, count: int, repetitions: int, seed: int = 0) -> Iterable[Images]:
    random = np.random.default_rng(seed)
    return (images[random.choice(len(images), count, replace=False)] for _ in range(repetitions))


def healing(repetitions: int) -> Finding:
    """A version was trained and judged on thick, slanted, shifted digits, and the traffic stays like that."""
    version, reference, images = world()
    restyled = perturbations.shift(perturbations.slant(perturbations.thicken(images[:12_000]), 20), 2.5)
    log, later = restyled[:2_000], restyled[2_000:]
    with tempfile.TemporaryDirectory() as folder:
        engine = database.connect(f"sqlite:///{folder}/digits.db")
        ids = _log(engine, version, np.concatenate([images[12_000:13_000], log]), audit_sample_rate=1.0)
        for row in range(0, 3_000, 20):
            predictions.label(engine, ids[row], 1, AUDITOR)
        feedback.ingest_feedback(engine, feedback.FeedbackPolicy())
        accepted = baseline.at_promotion(engine, "2", "1")
        normal = baseline.read(engine, accepted, version.predict_with_rejection) if accepted else None
        engine.dispose()
    if normal is None:
        return Finding("", "the promotion recorded no baseline", "", passed=False)
    tested = samples.of_reference(reference)
    naive = alarms(tested, map(version.sample, _draws(later, 500, repetitions)))
    guarded = alarms(normal, map(version.sample, _draws(later, 500, repetitions)))
    moved = perturbations.shift(later[:4_000], 1)
    again = alarms(normal, map(version.sample, _draws(moved, 500, repetitions)))
    return Finding(
        f"compared with the reference sample, alarms in {rate(naive, repetitions)} of 500 answers after the promotion",
        f"compared with the baseline of {len(normal):,} images, alarms in {rate(guarded, repetitions)}",
        f"a further shift by 1 px is detected in {rate(again, repetitions)}",
        passed=guarded <= 0.02 * repetitions and again >= 0.95 * repetitions,
    )


def _log(engine: Engine, version: Version, images: Images, audit_sample_rate: float) -> list[str]:
    """Log these images as answers of version 1, one a minute up to now; returns their ids."""
    start, ids = datetime.now(UTC) - timedelta(minutes=len(images)), predictions.new_ids(len(images))
    probabilities = version.predict_proba(images)
    batches = [
        PredictionBatch(
            [id], start + timedelta(minutes=row), "1", images[row : row + 1], probabilities[row : row + 1], "/classify"
        )
        for row, id in enumerate(ids)
    ]
    predictions.append(engine, batches, audit_sample_rate)
    return ids


def picture_files(repetitions: int) -> Finding:
    """The same test digits, sent as clean picture files."""
    version, reference, images = world()
    tested, naive, guarded, shifted, windows = samples.of_reference(reference), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for form in pictures.FORMS:
            pool = pictures.decode(images[:2_000], form)
            for count in (100, 500, len(pool)):
                times = repetitions if count < len(pool) else 1
                traffic = [version.sample(drawn, is_picture=True) for drawn in _draws(pool, count, times)]
                pairs = pictures.by_route(reference, traffic[0], version.predict_with_rejection, Path(folder))
                expected = samples.match_routes(traffic[0], pairs)
                naive, guarded = naive + alarms(tested, traffic), guarded + alarms(expected, traffic)
                windows += times
                if count == 500:
                    moved = (version.sample(perturbations.shift(one.images, 1), is_picture=True) for one in traffic)
                    shifted += alarms(expected, moved)
    return Finding(
        f"compared with the reference's pixels, alarms in {rate(naive, windows)} of 100, 500 and 2,000 answers",
        f"compared with the reference through the same decoder, alarms in {rate(guarded, windows)}",
        f"a shift by 1 px is detected in {rate(shifted, len(pictures.FORMS) * repetitions)} of 500 answers",
        passed=guarded <= 0.01 * windows and shifted >= 0.95 * len(pictures.FORMS) * repetitions,
    )


def forms(repetitions: int) -> Finding:
    """Forms with ten boxes, the same digit in the same box: 20,000 answers, of which 4,000 are read."""
    boxes = np.arange(20_000) % 10
    worst = []
    for _ in range(repetitions):
        drawn = np.argsort([id[predictions.TIME_DIGITS :] for id in predictions.new_ids(len(boxes))])[:4_000]
        worst.append(np.abs(label_shift.change(boxes.astype(float), boxes[drawn].astype(float))).max())
    every_fifth = np.abs(label_shift.change(boxes.astype(float), boxes[::5].astype(float))).max()
    limit = drift.thresholds({"digit": boxes.astype(float), "ink": boxes.astype(float)}, 4_000)["digit"]
    wrong = int((np.array(worst) > limit).sum())
    return Finding(
        f"every fifth answer: the share of a digit is wrong by {100 * every_fifth:.0f} points",
        f"by the random digits of the ids: by {100 * max(worst):.1f} points at most, {rate(wrong, repetitions)} beyond the threshold",
        "",
        passed=bool(wrong <= 0.01 * repetitions and every_fifth > limit),
    )


def probe(repetitions: int) -> Finding:
    """An uptime probe sends one image: 84 % of the answers."""
    version, reference, images = world()
    tested = samples.of_reference(reference)
    probed = [
        version.sample(np.concatenate([np.repeat(drawn[:1], 2_625, axis=0), drawn]))
        for drawn in _draws(images, 500, min(repetitions, 20))
    ]
    naive = alarms(tested, probed)
    guarded = alarms(tested, map(version.sample, _draws(images, 500, repetitions)))
    once = {len(samples.distinct(one)[0]) for one in probed}
    shifted = alarms(tested, map(version.sample, _draws(perturbations.shift(images[:4_000], 1), 500, repetitions)))
    return Finding(
        f"alarms in {rate(naive, len(probed))} of 500 answers and 2,625 to one image",
        f"each image once: {min(once)} to {max(once)} images are compared, alarms in {rate(guarded, repetitions)}",
        f"a shift by 1 px is detected in {rate(shifted, repetitions)}",
        passed=once == {500} and guarded <= 0.02 * repetitions and shifted >= 0.95 * repetitions,
    )


def restyle(images: Images, random: np.random.Generator) -> Images:
    """The images in the hand of one writer: slant, thickness and place are the same in all of them."""
    slanted = perturbations.slant(images, random.normal(0, 6))
    thickness = random.normal(0, 0.5)
    thick = perturbations.thicken(slanted, thickness) if thickness > 0 else perturbations.thin(slanted, -thickness)
    return perturbations.shift(thick, *random.normal(0, 0.5, 2))


def writers(repetitions: int) -> Finding:
    """Twenty images of each writer, in a hand of their own; the reference has one image of each of 5,000 writers."""
    version, _, images = world()
    random = np.random.default_rng(0)
    expected = version.sample(np.concatenate([restyle(images[row : row + 1], random) for row in range(REFERENCE)]))
    hands = [restyle(images[start : start + PER_WRITER], random) for start in range(REFERENCE, 25_000, PER_WRITER)]
    naive, guarded, power = [], [], 0
    for count in (25, 100):
        traffic = []
        for _ in range(repetitions):
            chosen = random.choice(len(hands), count, replace=False)
            names = np.repeat([f"writer {one}" for one in chosen], PER_WRITER).tolist()
            traffic.append(version.sample(np.concatenate([hands[one] for one in chosen]), names))
        naive.append(alarms(expected, traffic, with_clients=False, alpha=NAIVE_ALPHA))
        guarded.append(alarms(expected, traffic))
        if count == 25:
            moved = (version.sample(perturbations.shift(one.images, 2), one.clients.tolist()) for one in traffic)
            power = alarms(expected, moved)
    return Finding(
        f"images independent: alarms in {rate(naive[0], repetitions)} of 25 writers, {rate(naive[1], repetitions)} of 100",
        f"clients resampled: alarms in {rate(guarded[0], repetitions)} of 25 writers, {rate(guarded[1], repetitions)} of 100",
        f"a shift by 2 px is detected in {rate(power, repetitions)} of 25 writers (each strays by 0.5 px)",
        passed=max(guarded) <= 0.01 * repetitions and power >= 0.95 * repetitions,
    )


def hourly_looks(repetitions: int) -> Finding:
    """Unchanged traffic of 1,000 answers a day, and a look every hour at the last 24; each month has another reference."""
    version, reference, images = world()
    pool = np.concatenate([reference.images, images])
    table = drift.table(pool, version.predict_proba(pool), image_statistics.principal_axes(reference.images))
    months = max(1, round(repetitions / 25))
    found = np.array([_month(table, np.random.default_rng(month)) for month in range(months)])
    looks, episodes = found[:, :, 0].mean(axis=0), found[:, :, 1].sum(axis=0)
    # The exact interval of a Poisson mean (Garwood, Biometrika 28, 1936).
    low, high = chi2.ppf(0.025, 2 * episodes[1]) / 2 if episodes[1] else 0.0, chi2.ppf(0.975, 2 * episodes[1] + 2) / 2
    power = _power_at_500(version, reference, images)
    return Finding(
        f"alpha {NAIVE_ALPHA:g} a look: {episodes[0] / months:.1f} alarms in 30 days ({looks[0]:.0f} of 720 looks)",
        f"alpha {drift.ALPHA:g}: {episodes[1] / months:.2f} alarms in 30 days (95 % interval {low / months:.2f} to "
        f"{high / months:.2f}, {looks[1]:.1f} of 720 looks, {30 * months} days)",
        f"one digit twice as often, in windows of 500: {power[0]:.1%} at alpha {NAIVE_ALPHA:g}, {power[1]:.1%} at {drift.ALPHA:g}",
        passed=episodes[1] <= months and power[1] >= 0.95,
    )


def _month(table: image_statistics.Columns, random: np.random.Generator) -> list[tuple[int, int]]:
    """Alarms in the looks of 30 days, as looks and as episodes, for the naive alpha and for the one in use.

    A window is scored by the ranks of its images in the reference, so that an hour costs two sorts of its values.
    """
    names = [name for name in table if name != drift.DIGIT]
    rows = random.permutation(len(table[drift.DIGIT]))
    tested, others = rows[:REFERENCE], rows[REFERENCE:]
    hours = [random.choice(others, random.poisson(PER_DAY / 24)) for _ in range(HOURS + 24)]
    sent, ends = np.concatenate(hours), np.cumsum([0, *map(len, hours)])
    known = {name: np.sort(values[tested]) for name, values in table.items()}
    below, at_most = (
        np.stack([np.searchsorted(known[name], table[name][sent], side) for name in names]).astype(np.float32)
        / REFERENCE
        for side in ("left", "right")
    )
    shares, digits = label_shift.shares(table[drift.DIGIT][tested]), table[drift.DIGIT][sent]
    expected = {name: values[tested] for name, values in table.items()}
    chance = drift.simulate(expected)
    limits = [drift.thresholds(expected, PER_DAY, alpha=alpha, chance=chance) for alpha in (NAIVE_ALPHA, drift.ALPHA)]
    alarmed = np.zeros((2, HOURS), bool)
    for hour in range(HOURS):
        window = slice(ends[hour], ends[hour + 24])
        count = window.stop - window.start
        ranks = np.arange(1, count + 1, dtype=np.float32) / count
        above = (ranks - np.sort(at_most[:, window], axis=1)).max(axis=1)
        distances = np.maximum(above, (np.sort(below[:, window], axis=1) - ranks + 1 / count).max(axis=1))
        change = np.abs(label_shift.shares(digits[window]) - shares).max()
        for row, limit in enumerate(limits):
            # The number of answers varies from day to day.
            factor = np.sqrt((1 / REFERENCE + 1 / count) / (1 / REFERENCE + 1 / PER_DAY))
            numeric = np.maximum(factor * np.array([limit[name] for name in names]), drift.SMALLEST_DISTANCE)
            alarmed[row, hour] = (distances > numeric).any() or change > factor * limit[drift.DIGIT]
    begins = alarmed & ~np.pad(alarmed, ((0, 0), (1, 0)))[:, :-1]
    return [(int(one.sum()), int(starts.sum())) for one, starts in zip(alarmed, begins, strict=True)]


def _power_at_500(version: Version, reference: Reference, images: Images) -> list[float]:
    """The share of 200 windows in which a digit that is twice as frequent is detected, at the naive alpha and the one in use."""
    random, labels = np.random.default_rng(0), version.predict_proba(images).argmax(axis=1).astype(np.uint8)
    windows = [images[label_shift.oversample(labels, n % 10, 2.0, 500, random)] for n in range(200)]
    tested = samples.of_reference(reference)
    return [alarms(tested, map(version.sample, windows), alpha=alpha) / 200 for alpha in (NAIVE_ALPHA, drift.ALPHA)]


SCENARIOS = (
    Scenario(4, "Traffic stays different from training after a version was promoted for it", healing),
    Scenario(6, "The same test digits are sent as clean picture files", picture_files),
    Scenario(7, "Forms that have as many boxes as the sampling skips", forms),
    Scenario(8, "An uptime probe", probe),
    Scenario(8, "Twenty images of each writer", writers),
    Scenario(8, "Hourly looks at overlapping windows", hourly_looks),
)
