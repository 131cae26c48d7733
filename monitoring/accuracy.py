"""How often production answers are right: counted where feedback told the true digit, estimated where it did not."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from digits import intervals
from digits.intervals import Proportion
from digits.reference import Reference
from digits.storage.predictions import Window

_BINS = 10


class Accuracy(BaseModel):
    """What is known about the accuracy of one window."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["as expected", "worse", "not enough labels"]
    message: str
    count: int  # predictions
    expected: Proportion  # of the version on its held-out reference
    labelled: Proportion | None  # of the labelled predictions; None without labels
    audited: Proportion | None  # of those that were drawn at random to be labelled, which judge; None without any
    per_digit: dict[int, Proportion]  # by true digit, those that have labels
    mean_confidence: float | None  # over all predictions; None when there are none
    estimate: float | None  # without labels, from calibrated confidence, over all predictions
    estimate_error: float | None  # the same estimate of the audited predictions alone, minus their accuracy


def assess(reference: Reference, window: Window, labelled: Window | None = None, minimum_labels: int = 50) -> Accuracy:
    """The window's accuracy against the version's own on held-out images.

    `labelled` holds the labelled answers of that time where the window is a sample. *Worse* when the 95 % interval of the
    difference lies below 0 (Newcombe, Statist. Med. 17, 1998, method 10: made of the two Wilson intervals). The audit sample alone
    judges, and with fewer than `minimum_labels` nothing is claimed: labels that people choose to send are mostly complaints.
    """
    known = window if labelled is None else labelled
    expected = _share(reference.probabilities.argmax(axis=1) == reference.labels)
    has_label = known.labels >= 0
    right = known.digits == known.labels
    honest, estimated = (_calibrated(reference, _confidence(one)) for one in (known, window))
    audited = _share(right[known.audited]) if known.audited.any() else None
    found = Accuracy(
        verdict=_verdict(expected, audited, minimum_labels),
        message="",
        count=len(window),
        expected=expected,
        labelled=_share(right[has_label]) if has_label.any() else None,
        audited=audited,
        per_digit={int(digit): _share(right[known.labels == digit]) for digit in np.unique(known.labels[has_label])},
        mean_confidence=float(_confidence(window).mean()) if len(window) else None,
        estimate=float(estimated.mean()) if len(window) else None,
        estimate_error=float(honest[known.audited].mean()) - audited.value if audited else None,
    )
    return found.model_copy(update={"message": _message(found, minimum_labels)})


def _confidence(window: Window) -> NDArray[np.float32]:
    return window.probabilities.max(axis=1) if len(window) else np.zeros(0, dtype=np.float32)


def _share(right: NDArray[np.bool_]) -> Proportion:
    return intervals.wilson(int(right.sum()), len(right))


def _calibrated(reference: Reference, confidence: NDArray[np.float32]) -> NDArray[np.float64]:
    """How often the version was right on its reference at each confidence: means over tenths of the reference.

    Confidence on images unlike the reference promises too much; `estimate_error` shows how much, once there are labels.
    """
    known = reference.probabilities.max(axis=1)
    right = reference.probabilities.argmax(axis=1) == reference.labels
    edges = np.unique(np.quantile(known, np.arange(1, _BINS) / _BINS))
    bins = np.searchsorted(edges, known)
    count = np.bincount(bins, minlength=len(edges) + 1)
    rates = np.bincount(bins, weights=right, minlength=len(edges) + 1) / np.maximum(count, 1)
    rates[count == 0] = right.mean()
    return rates[np.searchsorted(edges, confidence)]


def _verdict(
    expected: Proportion, audited: Proportion | None, minimum_labels: int
) -> Literal["as expected", "worse", "not enough labels"]:
    if audited is None or audited.count < minimum_labels:
        return "not enough labels"
    highest = np.sqrt((audited.high - audited.value) ** 2 + (expected.value - expected.low) ** 2)
    return "worse" if audited.value - expected.value + highest < 0 else "as expected"


def _message(found: Accuracy, minimum_labels: int) -> str:
    known = f"the version had {found.expected.value:.2%} on {found.expected.count} held-out images"
    estimate = "" if found.estimate is None else f" By its confidence alone {found.estimate:.2%} would be right"
    audited = found.audited
    if audited is None or found.estimate_error is None or found.verdict == "not enough labels":
        few = f"Not enough labels: {audited.count if audited else 0} of at least {minimum_labels} of the audit sample; {known}."
        return f"{few}{estimate}." if estimate else few
    was = f"{audited.value:.2%} ({audited.low:.2%} to {audited.high:.2%}) of {audited.count} audited predictions are right"
    more = "more" if found.estimate_error > 0 else "less"
    return f"{found.verdict.capitalize()}: {was}; {known}.{estimate}, {100 * abs(found.estimate_error):.1f} points {more} than is true."
