"""The gate: whether a candidate replaces the champion, judged on the same images; pure, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from digits.images import Labels

UNDECIDED: Final = "not enough evidence"
LOOK = "look"  # in the evidence: how often these two were compared


class GatePolicy(BaseModel):
    """What counts as better, and what as harm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    significance: float = Field(0.01, gt=0, lt=1, description="Largest one-sided McNemar p-value that is evidence.")
    minimum_gain: float = Field(
        0.125, ge=0, le=1, description="Least share of the champion's errors that must go for a promotion."
    )
    allowed_loss: float = Field(0.002, ge=0, le=1, description="Loss of accuracy from which on evidence of it is harm.")
    digit_loss: float = Field(0.05, ge=0, le=1, description="Loss of one digit's recall from which on it is harm.")
    corruption_loss: float = Field(0.02, ge=0, le=1, description="Loss of accuracy on corrupted images that is harm.")
    smallest_sample: int = Field(50, ge=1, description="Fewer images than these beside the test images do not judge.")
    largest_bytes: int = Field(50_000_000, gt=0, description="Largest model file that may be served.")
    slowest_milliseconds: float = Field(20.0, gt=0, description="Longest median time for one image that may be served.")


@dataclass(frozen=True)
class Sample:
    """Labelled images that both models answered; every array has length n."""

    name: str  # "test images", "new traffic", ...
    labels: Labels
    candidate: Labels  # the digits it answered
    champion: Labels


@dataclass(frozen=True)
class Facts:
    """One model beside its answers."""

    corruption_accuracy: float
    size_bytes: int
    milliseconds: float  # median for one image
    trained_on: int = 0  # how many of the judged images were among its training images


@dataclass(frozen=True)
class GateVerdict:
    """The decision with every reason for it and the counts behind it."""

    decision: Literal["promote", "hold", "not enough evidence"]
    reasons: list[str]
    evidence: dict[str, float]

    @property
    def sentence(self) -> str:
        """The decision and its reasons on one line."""
        return f"{self.decision}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Paired:
    """A sample seen as pairs: only images that exactly one of the two gets right say which is better."""

    name: str
    gained: int  # only the candidate is right
    lost: int  # only the champion is right
    n: int
    errors: int  # of the champion

    @property
    def removed(self) -> float:
        """The share of the champion's errors that is gone; a point means little at 90 % and much at 99 %."""
        return (self.gained - self.lost) / self.errors if self.errors else 0.0

    @property
    def gain(self) -> float:
        return (self.gained - self.lost) / self.n

    @property
    def p_better(self) -> float:
        """Exact one-sided McNemar test (Dietterich 1998, "Approximate statistical tests for comparing ...")."""
        return sign_test(self.gained, self.lost)

    @property
    def p_worse(self) -> float:
        return sign_test(self.lost, self.gained)

    def __str__(self) -> str:
        return (
            f"{self.name}: only the candidate is right on {self.gained} of {self.n}, only the champion on {self.lost}"
        )


def judge_first(accuracy: float, floor: float, candidate: Facts, policy: GatePolicy) -> GateVerdict:
    """A first version is promoted when its test accuracy reaches the floor of its recipe."""
    evidence = {"accuracy": accuracy, "floor": floor, **_facts("candidate", candidate)}
    reasons = _unfit("candidate", candidate, policy)
    if accuracy < floor:
        reasons.append(f"test accuracy {accuracy:.4f} is below the recipe's floor {floor:.4f}")
    if reasons:
        return GateVerdict("hold", reasons, evidence)
    reason = f"there is no champion, and test accuracy {accuracy:.4f} reaches the floor {floor:.4f}"
    return GateVerdict("promote", [reason], evidence)


def judge(
    samples: Sequence[Sample], candidate: Facts, champion: Facts, policy: GatePolicy, look: int = 1
) -> GateVerdict:
    """Candidate against champion; the first sample are the test images, of which no digit may suffer.

    To be promoted, the candidate must be better on one of the samples by more than chance (corrected for their number, and for
    earlier looks at the same two) and do no harm on any.
    """
    pairs = [_pair(sample) for sample in samples]
    evidence = {
        LOOK: look,
        **_evidence(samples, pairs),
        **_facts("candidate", candidate),
        **_facts("champion", champion),
    }
    harm = [
        *_unfit("candidate", candidate, policy),
        *(_leak("champion", champion)),
        *(reason for pair in pairs for reason in _loss(pair, policy)),
        *_suffering_digits(samples[0], policy),
        *_corruption(candidate, champion, policy),
    ]
    if harm:
        return GateVerdict("hold", harm, evidence)
    if all((sample.candidate == sample.champion).all() for sample in samples):
        reason = "the candidate answers every one of the images as the champion does"
        return GateVerdict(UNDECIDED, [reason], evidence)
    significance = policy.significance / len(pairs) / (look * (look + 1) if look > 1 else 1)
    better = [pair for pair in pairs if pair.p_better <= significance]
    if not better:
        reasons = [f"{pair}, p = {pair.p_better:.2g}" for pair in pairs]
        return GateVerdict(UNDECIDED, reasons, evidence)
    worth = [pair for pair in better if pair.removed >= policy.minimum_gain]
    if not worth:
        asked = f"of the champion's errors gone, less than the {policy.minimum_gain:.1%} asked for"
        return GateVerdict("hold", [f"{pair}, {pair.removed:.1%} {asked}" for pair in better], evidence)
    reasons = [f"{pair}, a gain of {100 * pair.gain:.2f} points, p = {pair.p_better:.2g}" for pair in worth]
    return GateVerdict("promote", reasons, evidence)


def next_look(samples: Sequence[Sample], before: Mapping[str, float]) -> int | None:
    """Which look at the same two this is, None while it is too early; `before` is the evidence of the last look, empty for none.

    Who looks often enough finds chance: traffic is looked at again once there is twice as much of it, and look k > 1 is granted
    1 / (k (k + 1)) of the significance, so that all of them together have no more than half of what the first one had.
    """
    if not before:
        return 1
    seen = max((before.get(f"{sample.name}: images", 0) for sample in samples[1:]), default=0)
    now = max((len(sample.labels) for sample in samples[1:]), default=0)
    return int(before.get(LOOK, 1)) + 1 if now >= max(2 * seen, 1) else None


def sign_test(more: int, fewer: int) -> float:
    """Probability of at least `more` heads out of `more + fewer` throws of a fair coin."""
    from scipy.stats import binomtest  # 1 s, and most users of this room never judge

    return float(binomtest(more, more + fewer, 0.5, alternative="greater").pvalue) if more + fewer else 1.0


def _pair(sample: Sample) -> Paired:
    right, right_before = sample.candidate == sample.labels, sample.champion == sample.labels
    gained, lost = int((right & ~right_before).sum()), int((right_before & ~right).sum())
    return Paired(sample.name, gained, lost, len(sample.labels), int((~right_before).sum()))


def _evidence(samples: Sequence[Sample], pairs: Sequence[Paired]) -> dict[str, float]:
    evidence: dict[str, float] = {}
    for sample, pair in zip(samples, pairs, strict=True):
        evidence |= {
            f"{sample.name}: images": pair.n,
            f"{sample.name}: accuracy": float((sample.candidate == sample.labels).mean()),
            f"{sample.name}: champion accuracy": float((sample.champion == sample.labels).mean()),
            f"{sample.name}: only candidate right": pair.gained,
            f"{sample.name}: only champion right": pair.lost,
            f"{sample.name}: p better": pair.p_better,
        }
    return evidence


def _facts(who: str, facts: Facts) -> dict[str, float]:
    return {
        f"{who}: corruption accuracy": facts.corruption_accuracy,
        f"{who}: bytes": facts.size_bytes,
        f"{who}: milliseconds": facts.milliseconds,
    }


def _leak(who: str, facts: Facts) -> list[str]:
    if not facts.trained_on:
        return []
    return [f"the {who} trained on {facts.trained_on} of these images, so they cannot judge it"]


def _unfit(who: str, facts: Facts, policy: GatePolicy) -> list[str]:
    """Why a model may not be served, or not be judged, whatever it answers."""
    reasons = _leak(who, facts)
    if facts.size_bytes > policy.largest_bytes:
        reasons.append(f"the {who}'s file has {facts.size_bytes:,} bytes, allowed are {policy.largest_bytes:,}")
    if facts.milliseconds > policy.slowest_milliseconds:
        allowed = f"allowed are {policy.slowest_milliseconds:g}"
        reasons.append(f"the {who} takes {facts.milliseconds:.1f} ms for one image, {allowed}")
    return reasons


def _loss(pair: Paired, policy: GatePolicy) -> list[str]:
    """A loss beyond what is allowed, and beyond chance: one image can be percents of a small sample."""
    if -pair.gain > policy.allowed_loss and pair.p_worse <= policy.significance:
        return [f"{pair}, a loss of {-100 * pair.gain:.2f} points, p = {pair.p_worse:.2g}"]
    return []


def _suffering_digits(sample: Sample, policy: GatePolicy) -> list[str]:
    """Two trainings of one small network differ by up to 5 points in some digit's recall (`python -m bench.gate`)."""
    reasons = []
    for digit in range(10):
        chosen = sample.labels == digit
        one = _pair(Sample(str(digit), sample.labels[chosen], sample.candidate[chosen], sample.champion[chosen]))
        if one.n and -one.gain > policy.digit_loss and one.p_worse <= policy.significance:
            before, after = (
                float((answers[chosen] == digit).mean()) for answers in (sample.champion, sample.candidate)
            )
            reasons.append(f"recall of {digit} falls from {before:.3f} to {after:.3f}")
    return reasons


def _corruption(candidate: Facts, champion: Facts, policy: GatePolicy) -> list[str]:
    before, after = champion.corruption_accuracy, candidate.corruption_accuracy
    if before - after > policy.corruption_loss:
        return [f"accuracy on corrupted images falls from {before:.3f} to {after:.3f}"]
    return []
