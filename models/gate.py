"""The gate: whether a candidate replaces the champion, judged on the same images; pure functions without input or output."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from digits.images import Labels

UNDECIDED: Final = "not enough evidence"
HARM_SIGNIFICANCE = 0.01  # one-sided


class GatePolicy(BaseModel):
    """What counts as better, and what as harm."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="DIGITS_GATE")

    significance: float = Field(0.05, gt=0, lt=1, description="Share of all promotions that may be false (LORD++).")
    min_error_reduction: float = Field(0.125, ge=0, le=1, description="Smallest fraction of errors to remove.")
    max_accuracy_loss: float = Field(0.002, ge=0, le=1, description="A significant loss of accuracy above it is harm.")
    max_recall_loss: float = Field(0.05, ge=0, le=1, description="A significant loss of a digit's recall above it.")
    max_corruption_loss: float = Field(0.02, ge=0, le=1, description="Loss of accuracy on corrupted images above it.")
    min_sample: int = Field(50, ge=1, description="Labelled traffic with fewer images is not used.")
    max_bytes: int = Field(50_000_000, gt=0, description="Largest model file that may be served.")
    max_milliseconds: float = Field(20.0, gt=0, description="Longest median time for one image that may be served.")


@dataclass(frozen=True)
class EvaluationSample:
    """Labelled images and the digits that both models predict for them; every array has length n.

    Only images that exactly one of the two gets right tell which model is better.
    """

    name: str  # "test images", "new traffic", ...
    labels: Labels
    candidate: Labels
    champion: Labels

    @property
    def accuracies(self) -> tuple[float, float]:
        """Of the champion and of the candidate."""
        return float((self.champion == self.labels).mean()), float((self.candidate == self.labels).mean())

    @property
    def gained(self) -> int:
        """How many images only the candidate gets right."""
        return int(((self.candidate == self.labels) & (self.champion != self.labels)).sum())

    @property
    def lost(self) -> int:
        """How many images only the champion gets right."""
        return int(((self.candidate != self.labels) & (self.champion == self.labels)).sum())

    @property
    def gain(self) -> float:
        """Accuracy of the candidate minus accuracy of the champion."""
        return (self.gained - self.lost) / len(self.labels)

    @property
    def relative_error_reduction(self) -> float:
        """The fraction of the champion's errors that is gone; a point means little at 90 % and much at 99 %."""
        return (self.gained - self.lost) / max(1, int((self.champion != self.labels).sum()))

    @property
    def p_value(self) -> float:
        return mcnemar(self.gained, self.lost)

    @property
    def evidence(self) -> dict[str, float]:
        champion, candidate = self.accuracies
        facts = {
            "images": len(self.labels),
            "accuracy": candidate,
            "champion accuracy": champion,
            "only candidate right": self.gained,
            "only champion right": self.lost,
            "p-value": self.p_value,
        }
        return {f"{self.name}: {name}": value for name, value in facts.items()}

    def loses(self, max_loss: float, significance: float) -> bool:
        """Whether more accuracy is lost, and not by chance: one image can be percents of a small sample."""
        return -self.gain > max_loss and mcnemar(self.lost, self.gained) <= significance

    def of_digit(self, digit: int) -> "EvaluationSample":
        rows = self.labels == digit
        return EvaluationSample(str(digit), self.labels[rows], self.candidate[rows], self.champion[rows])

    def __str__(self) -> str:
        counts = f"on {self.gained} of {len(self.labels)}, only the champion on {self.lost}"
        return f"{self.name}: only the candidate is right {counts}"


@dataclass(frozen=True)
class ModelFacts:
    """What the gate weighs of one model beside its predictions."""

    corruption_accuracy: float
    size_bytes: int
    milliseconds: float  # median for one image
    images_trained_on: int = 0  # how many of the evaluation images were among its training images

    def evidence(self, role: str) -> dict[str, float]:
        return {f"{role}: {name}": value for name, value in asdict(self).items()}


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


def judge_first(accuracy: float, floor: float, candidate: ModelFacts, policy: GatePolicy) -> GateVerdict:
    """A first version is promoted when its test accuracy reaches the floor of its recipe."""
    evidence = {"accuracy": accuracy, "floor": floor, **candidate.evidence("candidate")}
    reasons = _unservable(candidate, policy)
    if accuracy < floor:
        reasons.append(f"test accuracy {accuracy:.4f} is below the recipe's floor {floor:.4f}")
    if reasons:
        return GateVerdict("hold", reasons, evidence)
    reason = f"there is no champion, and test accuracy {accuracy:.4f} reaches the floor {floor:.4f}"
    return GateVerdict("promote", [reason], evidence)


def judge(
    samples: Sequence[EvaluationSample],
    candidate: ModelFacts,
    champion: ModelFacts,
    policy: GatePolicy,
    significance: float,
) -> GateVerdict:
    """Compare candidate and champion; the first sample is the test images, on which no digit's recall may fall.

    To be promoted, the candidate must be better on one of the samples by more than chance and do no harm on any. The
    significance that is available to this judgement is divided by the number of samples.
    """
    evidence = {**candidate.evidence("candidate"), **champion.evidence("champion")}
    for sample in samples:
        evidence |= sample.evidence
    if harm := [*_unservable(candidate, policy), *_losses(samples, candidate, champion, policy)]:
        return GateVerdict("hold", harm, evidence)
    better = [sample for sample in samples if sample.p_value <= significance / len(samples)]
    if not better:
        return GateVerdict(UNDECIDED, [f"{sample}, p = {sample.p_value:.2g}" for sample in samples], evidence)
    enough = [sample for sample in better if sample.relative_error_reduction >= policy.min_error_reduction]
    if not enough:
        required = f"of the champion's errors gone, {policy.min_error_reduction:.1%} are required"
        reasons = [f"{sample}, {sample.relative_error_reduction:.1%} {required}" for sample in better]
        return GateVerdict("hold", reasons, evidence)
    reasons = [f"{sample}, a gain of {100 * sample.gain:.2f} points, p = {sample.p_value:.2g}" for sample in enough]
    return GateVerdict("promote", reasons, evidence)


def mcnemar(more: int, fewer: int) -> float:
    """The p-value of McNemar's exact one-sided test (Dietterich 1998, "Approximate statistical tests for comparing ...")."""
    from scipy.stats import binomtest  # takes 1 s to import

    return float(binomtest(more, more + fewer, alternative="greater").pvalue) if more + fewer else 1.0


def _unservable(candidate: ModelFacts, policy: GatePolicy) -> list[str]:
    """Why the candidate may not be served, or not be judged, whatever it predicts."""
    size, milliseconds, seen = candidate.size_bytes, candidate.milliseconds, candidate.images_trained_on
    duration, limit = f"{milliseconds:.1f} ms for one image", policy.max_milliseconds
    checks = [
        (seen > 0, f"the candidate trained on {seen} of the evaluation images"),
        (size > policy.max_bytes, f"the candidate's file has {size:,} bytes, allowed are {policy.max_bytes:,}"),
        (milliseconds > limit, f"the candidate takes {duration}, allowed are {limit:g}"),
    ]
    return [reason for failed, reason in checks if failed]


def _losses(
    samples: Sequence[EvaluationSample], candidate: ModelFacts, champion: ModelFacts, policy: GatePolicy
) -> Iterator[str]:
    """What the candidate does worse than the champion, and whether that can be judged."""
    if champion.images_trained_on:
        yield f"the champion trained on {champion.images_trained_on} of the evaluation images"
    by_digit = [(f"recall of {digit}", samples[0].of_digit(digit)) for digit in np.unique(samples[0].labels)]
    checks = [
        *((f"accuracy on {sample.name}", sample, policy.max_accuracy_loss) for sample in samples),
        *((recall, sample, policy.max_recall_loss) for recall, sample in by_digit),
    ]
    for what, sample, max_loss in checks:
        if sample.loses(max_loss, HARM_SIGNIFICANCE):
            yield f"{what} falls from {sample.accuracies[0]:.3f} to {sample.accuracies[1]:.3f}"
    before, after = champion.corruption_accuracy, candidate.corruption_accuracy
    if before - after > policy.max_corruption_loss:
        yield f"accuracy on corrupted images falls from {before:.3f} to {after:.3f}"
