"""Accuracy in production: measured where feedback gave the true digit, estimated from calibrated confidence elsewhere."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from digits import intervals
from digits.intervals import Proportion
from digits.reference import Reference
from digits.storage.predictions import Window

Verdict = Literal["as expected", "worse", "not enough labels"]


class Accuracy(BaseModel):
    """The accuracy of one window."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    message: str
    count: int  # predictions
    expected: Proportion  # of the version on its held-out reference
    labelled: Proportion | None  # of the labelled predictions; None without labels
    audited: Proportion | None  # of the labelled audit sample, which was drawn at random; None without any
    per_digit: dict[int, Proportion]  # of the labelled predictions, by true digit
    mean_confidence: float | None  # of all predictions; None when there are none
    estimate: float | None  # without labels: the mean calibrated confidence of all predictions
    estimate_error: float | None  # the same estimate for the audit sample alone, minus its accuracy


def assess(reference: Reference, window: Window, labelled: Window | None = None, minimum_labels: int = 50) -> Accuracy:
    """The window's accuracy against the version's own on held-out images.

    `labelled` holds all labelled predictions of that time where the window is a sample. *Worse* when the 95 % interval of the
    difference lies below 0 (Newcombe, Statist. Med. 17, 1998, method 10: composed of the two Wilson intervals). Only the audit
    sample decides the verdict, with at least `minimum_labels`: labels that users choose to send are mostly complaints.
    """
    known = window if labelled is None else labelled
    expected = _accuracy(reference.probabilities.argmax(axis=1) == reference.labels)
    has_label = known.labels >= 0
    right = known.digits == known.labels
    confidence, known_confidence = (one.probabilities.max(axis=1, initial=0) for one in (window, known))
    estimates = _calibrate(reference, confidence)
    audited = _accuracy(right[known.audited]) if known.audited.any() else None
    error = _calibrate(reference, known_confidence)[known.audited].mean() - audited.value if audited else None
    found = Accuracy(
        verdict=_verdict(expected, audited, minimum_labels),
        message="",
        count=len(window),
        expected=expected,
        labelled=_accuracy(right[has_label]) if has_label.any() else None,
        audited=audited,
        per_digit={int(d): _accuracy(right[known.labels == d]) for d in np.unique(known.labels[has_label])},
        mean_confidence=float(confidence.mean()) if len(window) else None,
        estimate=float(estimates.mean()) if len(window) else None,
        estimate_error=None if error is None else float(error),
    )
    return found.model_copy(update={"message": _message(found, minimum_labels)})


def _accuracy(right: NDArray[np.bool_]) -> Proportion:
    return intervals.wilson(int(right.sum()), len(right))


def _calibrate(reference: Reference, confidence: NDArray[np.float32]) -> NDArray[np.float64]:
    """The version's accuracy on its reference at each confidence: isotonic regression.

    On images unlike the reference this is too high; `estimate_error` shows by how much, once there are labels.
    """
    from sklearn.isotonic import IsotonicRegression  # 1 s

    if not len(confidence):
        return np.zeros(0)
    right = reference.probabilities.argmax(axis=1) == reference.labels
    return IsotonicRegression(out_of_bounds="clip").fit(reference.probabilities.max(axis=1), right).predict(confidence)


def _verdict(expected: Proportion, audited: Proportion | None, minimum_labels: int) -> Verdict:
    if audited is None or audited.count < minimum_labels:
        return "not enough labels"
    margin = np.sqrt((audited.high - audited.value) ** 2 + (expected.value - expected.low) ** 2)
    return "worse" if audited.value - expected.value + margin < 0 else "as expected"


def _message(found: Accuracy, minimum_labels: int) -> str:
    expected = f"{found.expected.value:.2%} of {found.expected.count} held-out images"
    estimate = "" if found.estimate is None else f" The estimate from the confidence is {found.estimate:.2%}"
    audited, error = found.audited, found.estimate_error
    if audited is None or error is None or found.verdict == "not enough labels":
        count = audited.count if audited else 0
        few = f"Accuracy is not known: {count} of at least {minimum_labels} labels of the audit sample; expected: {expected}."
        return f"{few}{estimate}." if estimate else few
    verdict = "worse than expected" if found.verdict == "worse" else "as expected"
    measured = f"{audited.value:.2%} ({audited.low:.2%} to {audited.high:.2%}) of {audited.count} audited predictions"
    too = f"{100 * abs(error):.1f} points too {'high' if error > 0 else 'low'}"
    return f"Accuracy is {verdict}: {measured} are correct, expected: {expected}.{estimate}, on the audit sample {too}."
