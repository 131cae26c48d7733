"""Accuracy in production: measured where feedback gave the true digit, estimated from calibrated confidence elsewhere."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from digits import intervals
from digits.intervals import Proportion
from digits.reference import Reference
from digits.storage.predictions import PredictionWindow

MIN_LABELS = 50  # of the audit sample; with fewer there is no verdict

Verdict = Literal["as expected", "worse", "not enough labels"]


class Accuracy(BaseModel, frozen=True):
    """The accuracy of one window."""

    verdict: Verdict
    expected: Proportion  # of the version on its held-out reference
    labelled: Proportion | None  # of the labelled predictions; None without labels
    audited: Proportion | None  # of the labelled audit sample, which was drawn at random; None without any
    per_digit: dict[int, Proportion]  # of the labelled predictions, by true digit
    estimate: float | None  # the mean calibrated confidence of all predictions; None when there are none
    estimate_error: float | None  # the same estimate for the audit sample alone, minus its accuracy

    @property
    def message(self) -> str:
        expected = f"{self.expected.value:.2%} of {self.expected.count} held-out images"
        estimate = "" if self.estimate is None else f" The estimate from the confidence is {self.estimate:.2%}"
        audited, error = self.audited, self.estimate_error
        if audited is None or error is None or self.verdict == "not enough labels":
            labels = f"{audited.count if audited else 0} of at least {MIN_LABELS} labels of the audit sample"
            return f"Accuracy is not known: {labels}; expected: {expected}.{estimate}{'.' if estimate else ''}"
        verdict = "worse than expected" if self.verdict == "worse" else self.verdict
        interval = f"({audited.low:.2%} to {audited.high:.2%})"
        measured = f"{audited.value:.2%} {interval} of {audited.count} audited predictions"
        too = f"{100 * abs(error):.1f} points too {'high' if error > 0 else 'low'}"
        return f"Accuracy is {verdict}: {measured} are correct, expected: {expected}.{estimate}, on the audit sample {too}."


def assess(reference: Reference, window: PredictionWindow, labelled: PredictionWindow | None = None) -> Accuracy:
    """The window's accuracy against the version's own on held-out images.

    `labelled` holds all labelled predictions of that time where the window is a sample. *Worse* when the 95 % interval of the
    difference lies below 0 (Newcombe, Statist. Med. 17, 1998, method 10: composed of the two Wilson intervals). Only the audit
    sample decides the verdict, with at least `MIN_LABELS`: labels that users choose to send are mostly complaints.
    """
    known = window if labelled is None else labelled
    expected = _accuracy(reference.probabilities.argmax(axis=1) == reference.labels)
    has_label, right = known.labels >= 0, known.digits == known.labels
    audited = _accuracy(right[known.audited]) if known.audited.any() else None
    estimate = _estimate(reference, window.probabilities)
    audit_estimate = _estimate(reference, known.probabilities[known.audited])
    verdict: Verdict = "not enough labels"
    if audited and audited.count >= MIN_LABELS:
        margin = np.hypot(audited.high - audited.value, expected.value - expected.low)
        verdict = "worse" if audited.value + margin < expected.value else "as expected"
    return Accuracy(
        verdict=verdict,
        expected=expected,
        labelled=_accuracy(right[has_label]) if has_label.any() else None,
        audited=audited,
        per_digit={int(d): _accuracy(right[known.labels == d]) for d in np.unique(known.labels[has_label])},
        estimate=estimate,
        estimate_error=None if audited is None or audit_estimate is None else audit_estimate - audited.value,
    )


def _accuracy(right: NDArray[np.bool_]) -> Proportion:
    return intervals.wilson(int(right.sum()), len(right))


def _estimate(reference: Reference, probabilities: NDArray[np.float32]) -> float | None:
    """The mean of the version's accuracy on its reference at each confidence: isotonic regression; None without predictions.

    On images unlike the reference this is too high; `estimate_error` shows by how much, once there are labels.
    """
    from sklearn.isotonic import IsotonicRegression  # 1 s

    if not len(probabilities):
        return None
    right = reference.probabilities.argmax(axis=1) == reference.labels
    calibration = IsotonicRegression(out_of_bounds="clip").fit(reference.probabilities.max(axis=1), right)
    return float(calibration.predict(probabilities.max(axis=1)).mean())
