"""How often production answers are right: counted where feedback told the true digit, estimated where it did not."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from digits import shares
from digits.predictions import Window
from digits.reference import Reference
from digits.shares import Share

_BINS = 10


class Accuracy(BaseModel):
    """What is known about the accuracy of one window."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["as expected", "worse", "not enough labels"]
    words: str
    count: int  # predictions
    expected: Share  # of the version on its held-out reference
    labelled: Share | None  # of the labelled predictions; None without labels
    audited: Share | None  # of those that were drawn at random to be labelled; None without any
    per_digit: dict[int, Share]  # by true digit, those that have labels
    mean_confidence: float | None  # over all predictions; None when there are none
    estimate: float | None  # without labels, from calibrated confidence, over all predictions
    estimate_error: float | None  # the same estimate of the predictions judged by alone, minus their accuracy


def assess(reference: Reference, window: Window, minimum_labels: int = 50) -> Accuracy:
    """The window's accuracy against the version's own on held-out images.

    *Worse* when the 95 % interval of the difference lies below 0 (Newcombe, Statist. Med. 17, 1998, method 10: made of the two Wilson
    intervals); with fewer labels than `minimum_labels` nothing is claimed. Labels that people send are mostly complaints, so the
    audit sample judges as soon as it has that many.
    """
    expected = _share(reference.probabilities.argmax(axis=1) == reference.labels)
    known = window.labels >= 0
    judged = window.audited if window.audited.sum() >= minimum_labels else known
    right = window.digits == window.labels
    confident = window.probabilities.max(axis=1) if len(window) else np.zeros(0, dtype=np.float32)
    honest = _calibrated(reference, confident)
    judging = _share(right[judged]) if judged.any() else None
    found = Accuracy(
        verdict=_verdict(expected, judging, minimum_labels),
        words="",
        count=len(window),
        expected=expected,
        labelled=_share(right[known]) if known.any() else None,
        audited=_share(right[window.audited]) if window.audited.any() else None,
        per_digit={int(digit): _share(right[window.labels == digit]) for digit in np.unique(window.labels[known])},
        mean_confidence=float(confident.mean()) if len(window) else None,
        estimate=float(honest.mean()) if len(window) else None,
        estimate_error=float(honest[judged].mean()) - judging.value if judging else None,
    )
    return found.model_copy(update={"words": _words(found, judging, minimum_labels)})


def _share(right: NDArray[np.bool_]) -> Share:
    return shares.of(int(right.sum()), len(right))


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
    expected: Share, labelled: Share | None, minimum_labels: int
) -> Literal["as expected", "worse", "not enough labels"]:
    if labelled is None or labelled.count < minimum_labels:
        return "not enough labels"
    highest = np.sqrt((labelled.high - labelled.value) ** 2 + (expected.value - expected.low) ** 2)
    return "worse" if labelled.value - expected.value + highest < 0 else "as expected"


def _words(found: Accuracy, judging: Share | None, minimum_labels: int) -> str:
    known = f"the version had {found.expected.value:.2%} on {found.expected.count} held-out images"
    estimate = "" if found.estimate is None else f" By its confidence alone {found.estimate:.2%} would be right"
    if found.verdict == "not enough labels":
        few = f"Not enough labels: {judging.count if judging else 0} of at least {minimum_labels}; {known}."
        return f"{few}{estimate}." if estimate else few
    assert judging is not None and found.estimate_error is not None
    which = "audited" if judging == found.audited else "labelled"
    was = f"{judging.value:.2%} ({judging.low:.2%} to {judging.high:.2%}) of {judging.count} {which} predictions are right"
    more = "more" if found.estimate_error > 0 else "less"
    return f"{found.verdict.capitalize()}: {was}; {known}.{estimate}, {100 * abs(found.estimate_error):.1f} points {more} than is true."
