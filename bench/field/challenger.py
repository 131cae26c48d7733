"""Labels come slowly and candidates daily: who is judged, how often, and how many are promoted by chance.

The answers are simulated: which of two models is better is then known, and thousands of judgements take seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.field.scenario import Finding, Scenario
from digits.storage import database
from digits.storage.judgements import Judgement
from models import challengers, gate, significance
from models.challengers import Question
from models.gate import UNDECIDED, EvaluationSample, GatePolicy, GateVerdict, ModelFacts

POLICY = GatePolicy()
SAME = ModelFacts(size_bytes=400_000, milliseconds=0.1)
CANDIDATES = 1000
HARD_IMAGES = 400  # of the test images; each model is right on every second of them
SETS = 2
FIXED_LEVEL = 0.01  # of a rule that judges every new pair as if it were the first

LABELS_A_DAY = 10
HELD_OUT = 0.3  # of the labels; a candidate trains on the others that came before it
DAYS = 30
CHALLENGER_DAYS = 14.0
DAY_ONE = datetime(2026, 1, 5, tzinfo=UTC)


# A thousand candidates that are no better


def null_p_values(random: np.random.Generator) -> NDArray[np.float64]:
    """The smallest corrected p-value of each candidate against one champion that is as good, (CANDIDATES,).

    All are compared on the same images, so where the champion was unlucky, every candidate looks better.
    """
    smallest = np.ones(CANDIDATES)
    for _ in range(SETS):
        champion = random.random(HARD_IMAGES) < 0.5
        right = random.random((CANDIDATES, HARD_IMAGES)) < 0.5
        found = p_values((right & ~champion).sum(axis=1), (~right & champion).sum(axis=1))
        smallest = np.minimum(smallest, SETS * found)
    return smallest


def p_values(gained: NDArray[np.int64], lost: NDArray[np.int64]) -> NDArray[np.float64]:
    """As `gate.sign_flip`, for arrays of counts of independent images."""
    from scipy.stats import binom

    return np.asarray(binom.sf(gained - 1, gained + lost, 0.5))


def power(number: int, gained: float, lost: float, level: float, random: np.random.Generator) -> float:
    """How often a candidate that is right on so many images more in the mean, of two sets, passes this level."""
    found = p_values(random.poisson(gained, 4000), random.poisson(lost, 4000))
    return float((found <= level / SETS).mean())


class Version(NamedTuple):
    """Which images it gets right; as good as every other."""

    day: int  # when it was trained
    test: NDArray[np.bool_]
    traffic: NDArray[np.bool_]  # labelled after that


@lru_cache(100_000)
def p_value(gained: int, lost: int) -> float:
    return float(p_values(np.array(gained), np.array(lost)))


def beats(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The p-value of a gain of A over B."""
    return p_value(int((a & ~b).sum()), int((b & ~a).sum()))


def queue_promotes(random: np.random.Generator, levels: NDArray[np.float64]) -> bool:
    """Whether one of the candidates, one a day, is promoted, with the queue of a retraining: a model of `persistent` for years."""

    def version(day: int) -> Version:
        labels = int(2 * CHALLENGER_DAYS + 1) * LABELS_A_DAY  # that come while it waits
        return Version(day, random.random(HARD_IMAGES) < 0.5, random.random(labels) < 0.7)

    def judge(one: Version, day: int) -> bool:
        images = LABELS_A_DAY * (day - one.day)
        found = [beats(one.test, champion)]
        if images >= POLICY.min_sample:
            found.append(beats(one.traffic[:images], random.random(images) < 0.7))
        spent.append(images)
        return len(found) * min(found) <= levels[len(spent) - 1]

    champion, spent = random.random(HARD_IMAGES) < 0.5, list[int]()
    challenger, since, seen, queue = None, 0, 0, list[Version]()
    for day in range(CANDIDATES):
        queue = [one for one in queue if day - one.day <= CHALLENGER_DAYS]
        challenger = None if day - since > CHALLENGER_DAYS else challenger
        is_due = challenger is not None and LABELS_A_DAY * (day - challenger.day) >= max(2 * seen, POLICY.min_sample)
        if challenger is None and queue:
            challenger, since, is_due = queue.pop(0), day, True
        if challenger is not None and is_due:
            if judge(challenger, day):
                return True
            seen = spent[-1] if spent[-1] >= POLICY.min_sample else 0
        newest = version(day)
        if challenger is not None and beats(newest.test, challenger.test) > FIXED_LEVEL:
            queue.append(newest)
        elif judge(newest, day):
            return True
        else:
            challenger, since, seen = newest, day, 0
    return False


def no_better(repetitions: int) -> Finding:
    """Streams of equally good candidates: how many promote one, and how likely a better one is promoted."""
    random = np.random.default_rng(0)
    levels = np.array([significance.level([False] * number, POLICY.significance) for number in range(CANDIDATES)])
    fixed, spent = np.zeros(repetitions), np.zeros(repetitions, np.bool_)
    for stream in range(repetitions):
        found = null_p_values(random)
        fixed[stream], spent[stream] = (found <= FIXED_LEVEL).sum(), (found <= levels).any()
    queued = np.mean([queue_promotes(random, levels) for _ in range(repetitions)])
    budget = POLICY.significance / 2
    powers = {}
    for number in (1, 10, 100, 1000):
        better = (partial(power, number, 75, 25), partial(power, number, 150, 100))
        powers[number] = [[one(level, random) for level in (levels[number - 1], FIXED_LEVEL)] for one in better]
    listed = "; ".join(
        f"{number}: {at_99[0]:.0%}, {at_98[0]:.0%} (level {levels[number - 1]:.2g})"
        for number, (at_99, at_98) in powers.items()
    )
    at_99, at_98 = powers[1]
    naive = f"{(fixed > 0).mean():.1%} of {repetitions} streams of {CANDIDATES} equally good candidates promote one, {fixed.mean():.1f} each"
    guarded = (
        f"{spent.mean():.1%} of the streams promote one where each candidate is judged, {queued:.1%} where they queue; "
        f"at most {budget:.1%} are allowed"
    )
    cost = (
        "power for a candidate that is better by half a point, at 99 % and at 97.7 % of 10,000 images: always at "
        f"{FIXED_LEVEL} {at_99[1]:.0%}, {at_98[1]:.0%}; as judgement number {listed}"
    )
    allowed = budget + 3 * np.sqrt(budget / repetitions)
    return Finding(naive, guarded, cost, bool(max(spent.mean(), queued) <= allowed and at_99[0] >= 0.95))


# Ten labels a day


@dataclass
class Registry:
    """Tags and aliases in memory; it is reader and writer."""

    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def registry(self) -> "Registry":
        return self

    def version(self, alias: str = "champion") -> str | None:
        return self.aliases.get(alias)

    def set_alias(self, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def remove_alias(self, alias: str) -> None:
        self.aliases.pop(alias, None)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        self.tags.setdefault(version, {}).update(tags)

    def version_tags(self, version: str) -> dict[str, str]:
        return self.tags.get(version, {})

    def tagged(self, name: str, value: str) -> dict[str, dict[str, str]]:
        return {version: tags for version, tags in self.tags.items() if tags.get(name) == value}


class World:
    """Traffic that the champion reads badly; each day brings labels and a candidate, which is better or as bad.

    On the test images all are the same: only traffic can tell.
    """

    def __init__(self, seed: int, champion: float, candidate: float) -> None:
        self.random = np.random.default_rng(seed)
        count = DAYS * LABELS_A_DAY
        self.held_out = self.random.random(count) < HELD_OUT
        self.accuracies = {"0": champion}
        self.right: dict[str, NDArray[np.bool_]] = {}
        self.trained_at: dict[str, int] = {"0": 0}
        self.add("0", champion, 0)
        self.candidate = candidate

    def add(self, version: str, accuracy: float, day: int) -> None:
        """A version that was trained on the labels up to that day; half of its errors are on images that all find hard."""
        hard = np.random.default_rng(1).random(DAYS * LABELS_A_DAY) < (1 - accuracy) / 2
        own = self.random.random(DAYS * LABELS_A_DAY) < (1 - accuracy) / (1 + accuracy)
        self.right[version] = ~(hard | own)
        self.trained_at[version] = day * LABELS_A_DAY

    def unseen(self, day: int, *versions: str) -> NDArray[np.bool_]:
        """The labels up to that day that none of the versions was trained on."""
        rows = np.arange(DAYS * LABELS_A_DAY)
        trained = rows < max(self.trained_at[version] for version in versions)
        return np.asarray((rows < day * LABELS_A_DAY) & (~trained | self.held_out))

    def compare(self, day: int, candidate: str, champion: str, level: float) -> GateVerdict:
        """What the gate says of the two on the test images, which say nothing, and on the traffic if there is enough."""
        labels = np.zeros(1000, np.uint8)
        samples = [EvaluationSample("test images", labels, labels, labels)]
        rows = self.unseen(day, candidate, champion)
        if rows.sum() >= POLICY.min_sample:
            zeros = np.zeros(rows.sum(), np.uint8)
            answers = ((~self.right[one][rows]).astype(np.uint8) for one in (candidate, champion))
            samples.append(EvaluationSample("traffic", zeros, *answers))
        return gate.judge(samples, SAME, SAME, POLICY, level)


def forgetful(world: World) -> tuple[int | None, int]:
    """Each day a new candidate is judged once, as if it were the first. Returns the day of the promotion, and how many were judged."""
    for day in range(1, DAYS + 1):
        world.add(str(day), world.candidate, day)
        if world.compare(day, str(day), "0", FIXED_LEVEL).decision == "promote":
            return day, day
    return None, DAYS


def persistent(world: World) -> tuple[int | None, int]:
    """As a retraining does: the challenger first; a new candidate waits behind it unless it beats it. Returns the same."""
    registry: Any = Registry(aliases={"champion": "0"})
    engine = database.make_engine("sqlite:///:memory:")
    Judgement.metadata.create_all(engine)
    for day in range(1, DAYS + 1):
        now = DAY_ONE + timedelta(days=day)
        challengers.expire(registry, now, CHALLENGER_DAYS)
        world.add(str(day), world.candidate, day)
        # The challenger may have trained on none of the labels since it was made.
        while challenger := challengers.appoint(registry, registry, now):
            verdict = ask(engine, world, day, challenger)
            if verdict.decision == "promote":
                return day, int(challenger)
            if verdict.decision == UNDECIDED:
                break
            challengers.close(registry, challenger, "held")
        challenger = challengers.appoint(registry, registry, now)
        if challenger and world.compare(day, str(day), challenger, FIXED_LEVEL).decision != "promote":
            challengers.enqueue(registry, str(day), now)
            continue
        verdict = ask(engine, world, day, str(day))
        if verdict.decision == "promote":
            return day, day
        if verdict.decision == UNDECIDED:
            challengers.enqueue(registry, str(day), now)
            if challenger:
                challengers.replace(registry, challenger, str(day), now)
    return None, DAYS


def ask(engine: Any, world: World, day: int, version: str) -> GateVerdict:
    """The recorded judgement of a version against the champion on that day."""
    images = int(world.unseen(day, version, "0").sum())
    question = Question(version, "0", "", images if images >= POLICY.min_sample else 0)
    return challengers.judge(engine, question, POLICY.significance, partial(world.compare, day, version, "0"))


def slow_labels(repetitions: int) -> Finding:
    """Months in which every candidate is better, and months in which none is: how soon, and how often, one is promoted."""
    found = {}
    for name, accuracy in (("better", 0.9), ("equal", 0.7)):
        for rule in (forgetful, persistent):
            outcomes = [rule(World(seed, 0.7, accuracy))[0] for seed in range(repetitions)]
            days = [day for day in outcomes if day is not None]
            found[name, rule.__name__] = len(days) / repetitions, float(np.median(days)) if days else float("nan")
    lines = {}
    for judging in ("forgetful", "persistent"):
        (share, median), (wrong, _) = found["better", judging], found["equal", judging]
        lines[judging] = (
            f"better candidates are promoted in {share:.1%} of {repetitions} months, after {median:.0f} days in the "
            f"median; equally good ones in {wrong:.1%}"
        )
    share, wrong = found["better", "persistent"][0], found["equal", "persistent"][0]
    budget = POLICY.significance / 2
    passed = share >= 0.9 and wrong <= budget + 3 * np.sqrt(budget / repetitions)
    faster = found["better", "persistent"][1] < found["better", "forgetful"][1]
    return Finding(lines["forgetful"], lines["persistent"], "", bool(passed and faster))


SCENARIOS = (
    Scenario(5, "A thousand candidates that are no better, on the same images", no_better),
    Scenario(5, "Ten labels and a new candidate a day", slow_labels),
)
