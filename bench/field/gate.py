"""The gate in the field: other data sets, images that are not independent, harm that is not significant, gains after a shift."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bench.field.data import mnist
from bench.field.scenario import Finding, Scenario
from digits.data import sources
from digits.data.datasets import Dataset, join
from digits.data.perturbations import PERTURBATIONS, quarter_turn
from digits.images import Images, Labels, Split
from digits.settings import load_settings
from models import corruption_weights, evaluation, gate, recipes, significance, training
from models.gate import CorruptedSample, EvaluationSample, GatePolicy, GateVerdict, ModelFacts

Answers = Callable[[Images], Labels]
FACTS = ModelFacts(size_bytes=500_000, milliseconds=0.1)
POLICY = GatePolicy()
LEVEL = significance.level([], POLICY.significance)
EPOCHS, TRAINED_ON = 6, 20_000  # of the networks: enough for 96.5 % of MNIST


def judge(*samples: EvaluationSample, corruptions: Sequence[CorruptedSample] = ()) -> GateVerdict:
    """With the usual policy, at the level that a first judgement has."""
    return gate.judge(samples, FACTS, FACTS, POLICY, LEVEL, corruptions)


def decide(*samples: EvaluationSample) -> str:
    return judge(*samples).decision


def naive(*samples: EvaluationSample, corruption_loss: float = 0.0) -> str:
    """The rule without the guard: better on one sample by McNemar's test, and no loss of more than 0.2 points is significant.

    The recall of digits is tested on the first sample only, and the mean of all corruptions may fall by 2 points.
    """
    parts = [(sample, 0.002) for sample in samples]
    parts += [(samples[0].rows(f"digit {digit}", samples[0].labels == digit), 0.05) for digit in range(10)]
    if corruption_loss > 0.02 or any(
        -part.gain > loss and mcnemar(part.lost, part.gained) <= LEVEL for part, loss in parts
    ):
        return "hold"
    better = [sample for sample in samples if mcnemar(sample.gained, sample.lost) <= LEVEL / len(samples)]
    return "promote" if any(sample.relative_error_reduction >= 0.125 for sample in better) else gate.UNDECIDED


def mcnemar(more: int, fewer: int) -> float:
    """One-sided and exact, for independent images."""
    return gate.sign_flip(np.repeat([1, -1], [more, fewer]))


def answered(rng: np.random.Generator, labels: Labels, wrong: NDArray[np.float64] | float) -> Labels:
    """Answers that are wrong with these chances, one for each image or for all."""
    return np.where(rng.random(len(labels)) < wrong, (labels + 1) % 10, labels).astype(np.uint8)


def pair(rng: np.random.Generator, name: str, n: int, champion: float, candidate: float) -> EvaluationSample:
    """Two models with these error rates on n new images, which make two thirds of the smaller number of errors on the same ones."""
    labels, shared = rng.integers(0, 10, n).astype(np.uint8), 2 / 3 * min(champion, candidate)
    hard = rng.random(n) < shared
    first, second = (
        answered(rng, labels, np.where(hard, 1.0, (rate - shared) / (1 - shared))) for rate in (candidate, champion)
    )
    return EvaluationSample(name, labels, first, second)


def network(train: Split, validation: Split) -> Answers:
    """A `compact` network after a few epochs."""
    recipe = recipes.find("compact").model_copy(update={"epochs": EPOCHS})
    model = training.fit(recipe, Dataset(train, validation, validation, "scenario")).model
    return lambda images: training.predict_proba(model, images).argmax(axis=1).astype(np.uint8)


@cache
def champion() -> Answers:
    """A network trained on MNIST."""
    return network(part(mnist().train, slice(0, TRAINED_ON)), mnist().validation)


def part(split: Split, rows: slice) -> Split:
    return Split(split.images[rows], split.labels[rows])


def sample(name: str, split: Split, candidate: Answers) -> EvaluationSample:
    """A candidate and the network trained on MNIST on the same images."""
    return EvaluationSample(name, split.labels, candidate(split.images), champion()(split.images))


def corrupted(anchor: Split, candidate: Answers, traffic: Images | None) -> list[CorruptedSample]:
    """Both on each corruption of the anchor, weighed by the traffic."""
    suite = evaluation.corruptions(anchor.images)
    weights = corruption_weights.corruption_weights({corruption_weights.CLEAN: anchor.images, **suite}, traffic)
    return [
        CorruptedSample(sample(f"corruption {name}", Split(images, anchor.labels), candidate), weights[name])
        for name, images in suite.items()
    ]


# Row 1


def another_dataset(repetitions: int) -> Finding:
    """A candidate trained on the bundled digits, or on 5,000 of one scanner, against a champion trained on MNIST."""
    settings, blur = load_settings(), PERTURBATIONS["blur"].apply
    bundled = sources.read("bundled", mnist=None, cache=settings.downloads)
    rows = (
        part(mnist().train, slice(-5000, None)),
        part(mnist().validation, slice(0, 1000)),
        part(mnist().test, slice(0, 1000)),
    )
    train, validation, test = (
        Split(blur(PERTURBATIONS["shift"].apply(one.images, 4.0), 1.0), one.labels) for one in rows
    )
    others = {"bundled": bundled, "one scanner": Dataset(train, validation, test, "scanner")}
    found = {}
    for name, data in others.items():
        candidate = network(data.train, data.validation)
        anchor, own = sample("anchor", mnist().test, candidate), sample("candidate", data.test, candidate)
        suite = corrupted(mnist().test, candidate, None)
        found[name] = naive(own), judge(anchor, own, corruptions=suite), anchor.accuracies
    before = [f"{name}: {rule}, MNIST {a:.1%} -> {b:.1%}" for name, (rule, _, (a, b)) in found.items()]
    after = [f"{name}: {verdict.decision} ({verdict.reasons[0]})" for name, (_, verdict, _) in found.items()]
    passed = all(verdict.decision == "hold" for _, verdict, _ in found.values())
    return Finding("; ".join(before), "; ".join(after), "", passed)


# Row 8


def clients(repetitions: int) -> Finding:
    """Two equally good models on 100 clients with 20 images each, of whom each is better for some clients."""
    rng = np.random.default_rng(8)
    level, n = 0.005, max(repetitions, 200) * 10
    null = [of_clients(rng, 0.0) for _ in range(n)]
    as_images = np.mean([mcnemar(one.gained, one.lost) <= level for one in null])
    as_clients = np.mean([one.p_value <= level for one in null])
    better = [of_clients(rng, 0.06) for _ in range(repetitions)]
    power = [
        np.mean([mcnemar(one.gained, one.lost) <= level for one in better]),
        np.mean([one.p_value <= level for one in better]),
    ]
    return Finding(
        f"images as independent: {as_images:.1%} false at a level of {level:.1%}",
        f"clients permuted as a whole: {as_clients:.2%} false of {n}",
        f"a gain of 6 points is found in {power[1]:.0%} (with the test that errs: {power[0]:.0%})",
        # Three standard errors above the level.
        bool(as_clients <= level + 3 * np.sqrt(level / n)),
    )


def of_clients(rng: np.random.Generator, gain: float, count: int = 100, images: int = 20) -> EvaluationSample:
    """Images of clients for each of whom the one or the other model is better by some 16 points."""
    labels = rng.integers(0, 10, count * images).astype(np.uint8)
    effect = np.repeat(rng.normal(gain / 2, 0.08, count), images)
    first, second = (answered(rng, labels, np.clip(0.15 + sign * effect, 0, 1)) for sign in (-1, 1))
    return EvaluationSample(
        "traffic", labels, first, second, [f"client {number // images}" for number in range(len(labels))]
    )


def one_application(repetitions: int) -> Finding:
    """An application sends 300 of 360 images for many writers, twelve people the others, for some of whom one model is better."""
    rng = np.random.default_rng(12)
    level, n = 0.005, max(repetitions, 200) * 10
    better = [of_application(rng, 0.15) for _ in range(repetitions)]
    null = [of_application(rng, 0.0) for _ in range(n)]
    rules = (lambda one: gate.sign_flip(whole_clients(one)), lambda one: one.p_value)
    power, false = (
        [float(np.mean([rule(one) <= level for one in drawn])) for rule in rules] for drawn in (better, null)
    )
    return Finding(
        f"each client permuted as a whole: a gain of 15 points is found in {power[0]:.1%}",
        f"a client with more than a quarter counts by image: found in {power[1]:.1%}",
        f"{false[1]:.2%} false of {n} at a level of {level:.1%} (before: {false[0]:.2%})",
        bool(power[1] >= 0.95 > power[0] and false[1] <= level + 3 * np.sqrt(level / n)),
    )


def of_application(rng: np.random.Generator, gain: float) -> EvaluationSample:
    """360 images; the application's writers find the candidate better by this much, the twelve clients by more or less."""
    labels = rng.integers(0, 10, 360).astype(np.uint8)
    effect = np.concatenate([np.full(300, gain / 2), np.repeat(rng.normal(gain / 2, 0.08, 12), 5)])
    first, second = (answered(rng, labels, np.clip(0.2 + sign * effect, 0, 1)) for sign in (-1, 1))
    clients = ["application"] * 300 + [f"client {number // 5}" for number in range(60)]
    return EvaluationSample("traffic", labels, first, second, clients)


def whole_clients(one: EvaluationSample) -> NDArray[np.int64]:
    """The sums of the changes over each client, the large one too."""
    _, client_of = np.unique(np.array(one.clients), return_inverse=True)
    return np.bincount(client_of, one.changes).astype(np.int64)


# Row 9


def harm(repetitions: int) -> Finding:
    """Better on the traffic, but one digit is lost there, or the errors on the anchor grow by 38 %."""
    rng = np.random.default_rng(9)
    drawn = {
        "7 unreadable in the traffic": [
            (pair(rng, "anchor", 10_000, 0.02, 0.02), seven_lost(rng)) for _ in range(repetitions)
        ],
        "errors at 99.5 % + 38 %": [
            (pair(rng, "anchor", 10_000, 0.005, 0.0069), pair(rng, "traffic", 1000, 0.1, 0.04))
            for _ in range(repetitions)
        ],
    }
    before = {name: np.mean([naive(*one) == "promote" for one in contests]) for name, contests in drawn.items()}
    after = {name: np.mean([judge(*one).decision == "promote" for one in contests]) for name, contests in drawn.items()}
    good = [(pair(rng, "anchor", 10_000, 0.01, 0.005),) for _ in range(repetitions)]
    good_after_shift = [
        (pair(rng, "anchor", 10_000, 0.01, 0.01), pair(rng, "traffic", 600, 0.3, 0.1)) for _ in range(repetitions)
    ]
    power = [
        [float(np.mean([rule(*one) == "promote" for one in contests])) for rule in (naive, decide)]
        for contests in (good, good_after_shift)
    ]
    return Finding(
        "; ".join(f"{name}: promoted {rate:.1%}" for name, rate in before.items()),
        "; ".join(f"{name}: promoted {rate:.1%}" for name, rate in after.items()),
        f"half a point better at 99 %: promoted {power[0][1]:.1%} instead of {power[0][0]:.1%}; as good, and better on the "
        f"traffic after a shift: {power[1][1]:.1%} instead of {power[1][0]:.1%}",
        bool(max(after.values()) <= 0.05 and power[0][1] >= 0.95 and power[1][1] >= 0.9),
    )


def seven_lost(rng: np.random.Generator) -> EvaluationSample:
    """300 audited images: the candidate reads no 7, and more of the other digits than the champion, which reads every 7."""
    labels = rng.integers(0, 10, 300).astype(np.uint8)
    candidate, champion = (
        answered(rng, labels, np.where(labels == 7, 1.0, 0.05)),
        answered(rng, labels, np.where(labels == 7, 0.0, 0.4)),
    )
    return EvaluationSample("traffic", labels, candidate, champion)


def ratchet(repetitions: int) -> Finding:
    """Ten candidates in a row, each with the most errors on the anchor that the rule lets pass, and better on the traffic."""
    rng = np.random.default_rng(10)
    labels = (np.arange(10_000) % 10).astype(np.uint8)
    start = labels.copy()
    start[rng.choice(10_000, 50, replace=False)] += 1
    start %= 10
    ends = [
        [ten_promotions(rng, labels, start, rule) for _ in range(max(1, repetitions // 50))] for rule in (naive, decide)
    ]
    before, after = (max(end) for end in ends)
    margin = 50 + POLICY.max_error_growth * 50 + POLICY.error_tolerance
    return Finding(f"50 -> {before} errors on the anchor", f"50 -> {after} errors", "", after <= margin < before)


def ten_promotions(rng: np.random.Generator, labels: Labels, champion: Labels, rule: Callable[..., str]) -> int:
    """The errors of the tenth champion; the best accuracy of all of them goes along, as in the ledger."""
    best = float((champion == labels).mean())
    for _ in range(10):
        traffic = pair(rng, "traffic", 600, 0.3, 0.1)
        right, passed = np.flatnonzero(champion == labels), champion
        for more in range(2, 60, 2):
            candidate = champion.copy()
            chosen = rng.choice(right, more, replace=False)
            candidate[chosen] = (labels[chosen] + 1) % 10
            if rule(EvaluationSample("anchor", labels, candidate, champion, best_accuracy=best), traffic) == "promote":
                passed = candidate
        champion = passed
    return int((champion != labels).sum())


# Row 10


def upside_down(repetitions: int) -> Finding:
    """The camera is upside down: a candidate that learned from the traffic reads it, and loses on corruptions that nobody sends."""
    rng = np.random.default_rng(11)
    learned, pool = (turned(one) for one in (part(mnist().train, slice(-1400, None)), mnist().validation))
    candidate = network(join(part(mnist().train, slice(0, TRAINED_ON)), learned), mnist().validation)
    anchor, on_traffic = sample("anchor", mnist().test, candidate), sample("traffic", pool, candidate)
    suite = corrupted(mnist().test, candidate, pool.images[:600])
    losses = float(np.mean([-one.sample.gain for one in suite]))
    draws = [resampled(on_traffic, rng.choice(len(pool), 600, replace=False)) for _ in range(repetitions)]
    before = [naive(anchor, drawn, corruption_loss=losses) for drawn in draws]
    after = [judge(anchor, drawn, corruptions=suite) for drawn in draws]
    promoted = [
        float(np.mean([decision == "promote" for decision in rule]))
        for rule in (before, [one.decision for one in after])
    ]
    weight = sum(one.weight for one in suite)
    accuracies = "traffic {:.1%} -> {:.1%}".format(*on_traffic.accuracies)
    return Finding(
        f"promoted in {promoted[0]:.1%}, {accuracies}: corrupted images lose {losses:.3f} in the mean",
        f"promoted in {promoted[1]:.1%}: all corruptions together weigh {weight:.2f}",
        "",
        promoted[1] >= 0.95,
    )


def turned(split: Split) -> Split:
    return Split(quarter_turn(split.images, 2), split.labels)


def resampled(one: EvaluationSample, rows: NDArray[np.int64]) -> EvaluationSample:
    return EvaluationSample(one.name, one.labels[rows], one.candidate[rows], one.champion[rows])


def new_convention(repetitions: int) -> Finding:
    """1 is now written as 7 was, and 7 with a bar: what the anchor says of these two digits is retired, then it is promoted."""
    train, validation, traffic = (as_now_written(one) for one in (
        part(mnist().train, slice(0, TRAINED_ON)), mnist().validation, part(mnist().test, slice(0, 2000)),
    ))  # fmt: skip
    candidate = network(train, validation)
    anchor, on_traffic = sample("anchor", mnist().test, candidate), sample("traffic", traffic, candidate)
    suite = corrupted(mnist().test, candidate, traffic.images)
    kept = ~np.isin(anchor.labels, [1, 7])
    rest = [CorruptedSample(resampled(one.sample, np.flatnonzero(kept)), one.weight) for one in suite]
    before = judge(anchor, on_traffic, corruptions=suite)
    after = judge(resampled(anchor, np.flatnonzero(kept)), on_traffic, corruptions=rest)
    passed = before.decision == "hold" and after.decision == "promote"
    return Finding(before.sentence, f"after retiring anchor digit 1 and 7: {after.sentence}", "", passed)


def as_now_written(split: Split) -> Split:
    """Sevens with a bar, and ones that look like sevens did."""
    images = split.images.copy()
    sevens = np.flatnonzero(split.labels == 7)
    ones = np.flatnonzero(split.labels == 1)
    images[ones] = split.images[np.resize(sevens, len(ones))]
    images[sevens, 14:16, 8:20] = 255
    return Split(images, split.labels)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(1, "the candidate learned from another data set", another_dataset),
    Scenario(8, "McNemar's test on images of the same clients", clients),
    Scenario(8, "one application among many clients", one_application),
    Scenario(9, "harm that is not significant", harm),
    Scenario(9, "ten promotions in a row", ratchet),
    Scenario(10, "a good candidate after a shift", upside_down),
    Scenario(10, "digits in a new convention", new_convention),
)
