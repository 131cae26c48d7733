"""The gate: whether a candidate replaces the champion, judged on the same images; pure functions without input or output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from digits.images import Labels

UNDECIDED: Final = "not enough evidence"
# With fewer, no permutation of clients can reach a level of 0.001; their images then count as independent.
MIN_CLIENTS = 10
# Of the images of a set. With more, the permutation of one client decides the test. Such a client, often an application that sends for
# many writers, is a part of the traffic rather than one of many that were drawn from it, and its images count as independent.
MAX_CLIENT_SHARE = 0.25
MAX_REASONS = 3  # about single digits, routes or clients of a set


class GatePolicy(BaseModel):
    """What counts as better, and what as harm."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="DIGITS_GATE")

    significance: float = Field(0.05, gt=0, lt=1, description="Share of all promotions that may be false (LORD++).")
    min_error_reduction: float = Field(0.125, ge=0, le=1, description="Smallest fraction of errors to remove.")
    max_error_growth: float = Field(0.3, ge=0, description="Largest growth of the errors on a set, as a fraction.")
    error_tolerance: int = Field(3, ge=0, description="Errors allowed beyond that growth, for sets with few errors.")
    max_slice_growth: float = Field(2.0, ge=0, description="Allowed loss of a digit, in units of the set's error rate.")
    max_slice_loss: float = Field(0.05, ge=0, le=1, description="Largest loss of accuracy of a digit, route or client.")
    max_corruption_loss: float = Field(0.02, ge=0, le=1, description="Loss of weighted accuracy on corrupted images.")
    harm_significance: float = Field(0.05, gt=0, lt=0.5, description="Level of the tests and bounds of harm.")
    min_sample: int = Field(50, ge=1, description="Fewest images of a set, and of a route or client judged by itself.")
    max_bytes: int = Field(50_000_000, gt=0, description="Largest model file that may be served.")
    max_milliseconds: float = Field(20.0, gt=0, description="Longest median time for one image that may be served.")


@dataclass(frozen=True, eq=False)
class EvaluationSample:
    """Labelled images and the digits that both models predict for them; every array has length n.

    Only images that exactly one of the two gets right tell which model is better.
    """

    name: str  # "anchor", "traffic", ...
    labels: Labels
    candidate: Labels
    champion: Labels
    clients: Sequence[str] = ()  # who sent each image, "" where unknown; empty where the images are independent
    routes: Sequence[str] = ()  # by which each image came; empty where by none
    left_out: int = 0  # further images of the set, on which one of the models was trained
    best_accuracy: float | None = None  # that a champion reached on this set

    @property
    def accuracies(self) -> tuple[float, float]:
        """The accuracy of the champion and of the candidate; 0 without images."""
        n = max(1, len(self.labels))
        return float((self.champion == self.labels).sum() / n), float((self.candidate == self.labels).sum() / n)

    @property
    def gained(self) -> int:
        """How many images only the candidate gets right."""
        return int((self.changes > 0).sum())

    @property
    def lost(self) -> int:
        """How many images only the champion gets right."""
        return int((self.changes < 0).sum())

    @property
    def errors(self) -> int:
        """How many images the champion gets wrong."""
        return int((self.champion != self.labels).sum())

    @cached_property
    def changes(self) -> NDArray[np.int64]:
        """1 where only the candidate is right, -1 where only the champion is, else 0; (n,)."""
        return (self.candidate == self.labels).astype(np.int64) - (self.champion == self.labels)

    @cached_property
    def totals(self) -> NDArray[np.int64]:
        """The sums of the changes over each client; of every image by itself where clients are unknown, few or large."""
        if not self.clients:
            return self.changes
        names, client_of, counts = np.unique(np.array(self.clients), return_inverse=True, return_counts=True)
        if (names != "").sum() < MIN_CLIENTS:
            return self.changes
        is_single = (names == "") | (counts > MAX_CLIENT_SHARE * len(client_of))
        by_client = np.bincount(client_of, self.changes).astype(np.int64)
        return np.concatenate([by_client[~is_single], self.changes[is_single[client_of]]])

    @property
    def gain(self) -> float:
        """Accuracy of the candidate minus accuracy of the champion."""
        return float(self.changes.sum()) / max(1, len(self.labels))

    @property
    def relative_error_reduction(self) -> float:
        """The fraction of the champion's errors that is gone; a point means little at 90 % and much at 99 %."""
        return float(self.changes.sum()) / max(1, self.errors)

    @cached_property
    def p_value(self) -> float:
        """The p-value of the hypothesis that the candidate is not better, one-sided."""
        return sign_flip(self.totals)

    @cached_property
    def loss_p_value(self) -> float:
        """The p-value of the hypothesis that the candidate is not worse, one-sided."""
        return sign_flip(-self.totals)

    def reference_errors(self, policy: GatePolicy) -> int:
        """The errors of the champion or, where a champion before it made fewer on this set, of that one, so that losses do not add up.

        Only a promotion by hand leaves a champion beyond the margin; then that champion is the reference.
        """
        best = self.errors if self.best_accuracy is None else round((1 - self.best_accuracy) * len(self.labels))
        return best if best < self.errors <= best + _margin(best, policy) else self.errors

    def bound(self, policy: GatePolicy) -> float:
        """The upper confidence bound of the candidate's errors beyond `reference_errors`, in images.

        Of n images on which the two differ, a share is lost to the candidate; its bound is that of Clopper and Pearson (1934),
        for images of the same clients with n divided by the design effect (Korn and Graubard 1998).
        """
        from scipy.stats import beta  # takes 1 s to import

        differing, lost, behind = self.gained + self.lost, self.lost, self.errors - self.reference_errors(policy)
        if not differing:
            return float(behind)
        design_effect = max(1.0, float((self.totals**2).sum()) / differing)
        n, k = differing / design_effect, lost / design_effect
        share = float(beta.ppf(1 - policy.harm_significance, k + 1, n - k)) if n > k else 1.0
        return differing * (2 * share - 1) + behind

    def margin(self, policy: GatePolicy) -> float:
        """How many errors more than `reference_errors` are allowed."""
        return _margin(self.reference_errors(policy), policy)

    def slices(self, policy: GatePolicy) -> "list[EvaluationSample]":
        """The images of each digit, and of each route and client with at least `min_sample` images."""
        found = [self.rows(f"digit {digit}", self.labels == digit) for digit in np.unique(self.labels)]
        for kind, values in (("route", self.routes), ("client", self.clients)):
            counts = zip(*np.unique(np.array(values, np.str_), return_counts=True), strict=True)
            names = [str(name) for name, count in counts if name and count >= policy.min_sample]
            found += [self.rows(f"{kind} {name}", np.array(values) == name) for name in names]
        return found

    def rows(self, name: str, chosen: NDArray[np.bool_]) -> "EvaluationSample":
        """These images as a sample of their own, `<set> <name>`."""
        clients = [client for client, is_chosen in zip(self.clients, chosen, strict=False) if is_chosen]
        arrays = {part: getattr(self, part)[chosen] for part in ("labels", "candidate", "champion")}
        return replace(
            self, name=f"{self.name} {name}", **arrays, clients=clients, routes=(), left_out=0, best_accuracy=None
        )

    def evidence(self, policy: GatePolicy) -> dict[str, float]:
        """The figures of the comparison, named `<set>: <figure>`."""
        champion, candidate = self.accuracies
        facts = {
            "images": len(self.labels),
            "left out": self.left_out,
            "accuracy": candidate,
            "champion accuracy": champion,
            "only candidate right": self.gained,
            "only champion right": self.lost,
            "p-value": self.p_value,
            "bound": self.bound(policy),
            "margin": self.margin(policy),
        }
        best = {} if self.best_accuracy is None else {f"{self.name}: best accuracy": self.best_accuracy}
        return {f"{self.name}: {name}": value for name, value in facts.items()} | best

    def __str__(self) -> str:
        counts = f"on {self.gained} of {len(self.labels)}, only the champion on {self.lost}"
        return f"{self.name}: only the candidate is right {counts}"


@dataclass(frozen=True, eq=False)
class CorruptedSample:
    """Both models on one corruption of the images, and the share of the traffic that looks like it."""

    sample: EvaluationSample
    weight: float


@dataclass(frozen=True)
class ModelFacts:
    """What the gate weighs of one model beside its predictions."""

    size_bytes: int
    milliseconds: float  # median for one image

    def evidence(self, role: str) -> dict[str, float]:
        return {f"{role}: {name}": value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class GateVerdict:
    """The decision with every reason for it and the counts behind it."""

    decision: Literal["promote", "hold", "not enough evidence"]
    reasons: list[str]
    evidence: dict[str, float]
    digest: str = ""  # of the version that was judged, where the judgement fetched one
    other_digest: str = ""  # of the one that it was compared with, likewise

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
    corruptions: Sequence[CorruptedSample] = (),
) -> GateVerdict:
    """Compare candidate and champion on every sample, at a level of significance that is divided by their number.

    To be promoted, the candidate must be better on one of the samples by more than chance, and on each of them it must be
    excluded that it makes more additional errors than the margin. Evidence of harm holds it.
    """
    evidence = candidate.evidence("candidate") | champion.evidence("champion")
    for sample in samples:
        evidence |= sample.evidence(policy)
    for corrupted in corruptions:
        evidence |= _corruption_evidence(corrupted)
    if not samples:
        nothing = "every evaluation set is retired or too small"
        return GateVerdict(UNDECIDED, [f"{nothing}; `digits evaluations` lists them"], evidence)
    if harm := [*_unservable(candidate, policy), *_harm(samples, corruptions, policy)]:
        return GateVerdict("hold", harm, evidence)
    better = [sample for sample in samples if sample.p_value <= significance / len(samples)]
    if not better:
        return GateVerdict(UNDECIDED, [f"{sample}, p = {sample.p_value:.2g}" for sample in samples], evidence)
    enough = [sample for sample in better if sample.relative_error_reduction >= policy.min_error_reduction]
    if not enough:
        required = f"of the champion's errors gone, {policy.min_error_reduction:.1%} are required"
        reasons = [f"{sample}, {sample.relative_error_reduction:.1%} {required}" for sample in better]
        return GateVerdict("hold", reasons, evidence)
    if doubts := [_doubt(sample, policy) for sample in samples if sample.bound(policy) > sample.margin(policy)]:
        return GateVerdict(UNDECIDED, doubts, evidence)
    reasons = [f"{sample}, a gain of {100 * sample.gain:.2f} points, p = {sample.p_value:.2g}" for sample in enough]
    return GateVerdict("promote", reasons, evidence)


def table(evidence: Mapping[str, float]) -> list[dict[str, str]]:
    """What the evidence says of each evaluation set, as texts for a table."""
    columns = {
        "images": ("images", ",.0f"),
        "left out": ("left out", ",.0f"),
        "champion": ("champion accuracy", ".4f"),
        "candidate": ("accuracy", ".4f"),
        "p": ("p-value", ".2g"),
        "bound of more errors": ("bound", ".1f"),
        "allowed": ("margin", ".1f"),
    }
    sets = [name.removesuffix(": margin") for name in evidence if name.endswith(": margin")]
    return [
        {"set": name} | {column: format(evidence[f"{name}: {key}"], form) for column, (key, form) in columns.items()}
        for name in sets
    ]


def sign_flip(totals: NDArray[np.int64]) -> float:
    """The one-sided p-value of a sum of independent totals, each as likely as its negative; exact, by convolution.

    With totals of -1, 0 and 1 it is McNemar's exact test; with sums over clients, whose images are not independent, it is the
    permutation test that exchanges the two models for a whole client at once (Fisher 1935; Good 2005, chapter 3).
    """
    from scipy.stats import binom  # takes 1 s to import

    sizes = np.abs(totals[totals != 0])
    ones, total = int((sizes == 1).sum()), int(totals.sum())
    if ones == len(sizes):
        return float(binom.sf((ones + total) // 2 - 1, ones, 0.5))
    # The probabilities of the sums -n, ..., n.
    chances = np.zeros(2 * ones + 1)
    chances[::2] = binom.pmf(np.arange(ones + 1), ones, 0.5)
    for size in sizes[sizes > 1]:
        padding = np.zeros(2 * size)
        chances = (np.concatenate([chances, padding]) + np.concatenate([padding, chances])) / 2
    return float(min(1.0, chances[len(chances) // 2 + total :].sum()))


def _unservable(candidate: ModelFacts, policy: GatePolicy) -> list[str]:
    """Why the candidate may not be served, whatever it predicts."""
    size, milliseconds = candidate.size_bytes, candidate.milliseconds
    duration, limit = f"{milliseconds:.1f} ms for one image", policy.max_milliseconds
    checks = [
        (size > policy.max_bytes, f"the candidate's file has {size:,} bytes, allowed are {policy.max_bytes:,}"),
        (milliseconds > limit, f"the candidate takes {duration}, allowed are {limit:g}"),
    ]
    return [reason for failed, reason in checks if failed]


def _harm(
    samples: Sequence[EvaluationSample], corruptions: Sequence[CorruptedSample], policy: GatePolicy
) -> Iterator[str]:
    """What the candidate does worse than the champion by evidence, and which sets cannot tell."""
    for sample in samples:
        if len(sample.labels) < policy.min_sample:
            left = f"{len(sample.labels)} images remain, at least {policy.min_sample} are required"
            known = f"{sample.left_out} were left out because one of the two was trained on them"
            fix = f'`digits evaluations retire {sample.name} --reason "…"` gives the set up'
            yield f"{sample.name}: {left}; {known}; {fix}"
        elif sample.bound(policy) > sample.margin(policy) and sample.loss_p_value <= policy.harm_significance:
            yield _more_errors(sample, sample.margin(policy), policy)
        yield from _slice_harm(sample, policy)
    yield from _corruption_harm(corruptions, policy)


def _slice_harm(sample: EvaluationSample, policy: GatePolicy) -> Iterator[str]:
    """The digits, routes and clients of a set that lose by evidence: those that lose most, and how many others."""
    slices, level = sample.slices(policy), policy.harm_significance
    margins = [(part, _slice_margin(sample, part, policy)) for part in slices]
    harmed = [
        (part, margin)
        for part, margin in margins
        if -part.changes.sum() > margin and part.loss_p_value <= level / len(slices)
    ]
    harmed.sort(key=lambda found: int(found[0].changes.sum()))
    for part, margin in harmed[:MAX_REASONS]:
        yield _more_errors(part, margin, policy)
    if others := harmed[MAX_REASONS:]:
        yield f"{sample.name}: {len(others)} other digits, routes or clients lose as well"


def _margin(errors: int, policy: GatePolicy) -> float:
    return policy.max_error_growth * errors + policy.error_tolerance


def _slice_margin(sample: EvaluationSample, part: EvaluationSample, policy: GatePolicy) -> float:
    """How many more errors a part of the sample may have; seeds of one recipe differ by the sample's error rate or more."""
    growth = policy.max_slice_growth * sample.errors / len(sample.labels)
    return min(growth, policy.max_slice_loss) * len(part.labels) + policy.error_tolerance


def _more_errors(sample: EvaluationSample, margin: float, policy: GatePolicy) -> str:
    champion, candidate = sample.accuracies
    reference = sample.reference_errors(policy)
    more = sample.errors - int(sample.changes.sum()) - reference
    fall = f"accuracy falls from {champion:.4f} to {candidate:.4f}"
    return f"{sample.name}: {fall}, {more} errors more than {reference}, allowed are {margin:.0f}"


def _doubt(sample: EvaluationSample, policy: GatePolicy) -> str:
    bound = f"{sample.bound(policy):.1f} errors more than {sample.reference_errors(policy)} cannot be excluded"
    return f"{sample.name}: {bound}, allowed are {sample.margin(policy):.1f} of {len(sample.labels)} images"


def _corruption_harm(corruptions: Sequence[CorruptedSample], policy: GatePolicy) -> Iterator[str]:
    """Whether the accuracy on corrupted images, weighted by what the traffic looks like, falls by too much and not by chance."""
    if not corruptions:
        return
    # The versions of one image are not independent, so their changes are added up before the test.
    changes = sum(corrupted.weight * corrupted.sample.changes for corrupted in corruptions)
    loss, deviation = -float(np.mean(changes)), float(np.std(changes)) / np.sqrt(np.size(changes))
    if loss > max(policy.max_corruption_loss, NormalDist().inv_cdf(1 - policy.harm_significance) * deviation):
        worst = min(corruptions, key=lambda corrupted: corrupted.weight * corrupted.sample.gain)
        champion, candidate = worst.sample.accuracies
        fall = f"{worst.sample.name} (weight {worst.weight:.2f}) falls from {champion:.3f} to {candidate:.3f}"
        yield f"weighted accuracy on corrupted images falls by {loss:.3f}, allowed are {policy.max_corruption_loss}; {fall}"


def _corruption_evidence(corrupted: CorruptedSample) -> dict[str, float]:
    sample = corrupted.sample
    facts = {"weight": corrupted.weight, "only candidate right": sample.gained, "only champion right": sample.lost}
    return {f"{sample.name}: {name}": value for name, value in {**facts, "p-value": sample.loss_p_value}.items()}
