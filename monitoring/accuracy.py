"""Accuracy in production: tested on all audited answers of a version, and estimated from calibrated confidence without labels."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from digits import intervals
from digits.images import NO_DIGIT
from digits.intervals import Proportion
from digits.reference import Reference
from digits.storage import audit
from digits.storage.audit import MIN_LABELS, AuditedAnswer
from digits.storage.predictions import PredictionWindow
from monitoring import sequential
from monitoring.sequential import Days, Values

STRETCH_DAYS = 7  # of the newest stretch
RECOVERY = 200  # observations that end a fall for good; of a lasting fall they happen to reach 97.5 % with 6 % at 95 %, 0.004 % at 90 %
MIN_CLIENTS = 3  # with fewer, clients are applications that send for many writers
ALPHA = 0.01  # the chance that a version is ever called worse though it is not: half for the test, half for the expected accuracy

Verdict = Literal["as expected", "worse", "not enough labels"]


@dataclass(frozen=True)
class History:
    """All that is known of a version's accuracy, except its reference."""

    answers: Sequence[AuditedAnswer]  # the labelled audit sample, oldest first
    since: datetime  # when the version began
    accuracy_at_promotion: Proportion | None = (
        None  # on the labelled traffic on which the gate judged it; None if there was none
    )


class Observations(NamedTuple):
    """What counts as independent, ordered by day; arrays of length n."""

    values: Values  # the share of right answers: 0 or 1, or between for several answers to one client
    days: Days  # since the version began
    labels: NDArray[np.int64]  # the number of labels in each


class Stretch(BaseModel, frozen=True):
    """The newest labelled audit answers: those of seven days, or of more days until there are `MIN_LABELS`."""

    labels: int
    since: date
    until: date  # the day of the newest labelled answer
    value: float  # the mean over observations
    low: float  # a 95 % interval that is valid at every look
    high: float


class Accuracy(BaseModel, frozen=True):
    """The accuracy of a version, and of one window of its answers."""

    verdict: Verdict
    expected: Proportion  # of the version on its held-out reference
    least: float  # the lower bound of what is expected: of the reference, or of the traffic that the version was promoted on
    evidence: float  # the logarithm (base 10) of the e-value against an accuracy of at least that; *worse* from 2.3 on
    newest: Stretch | None  # None without labels
    worse_since: date | None  # the most likely day; None unless it is worse
    labelled: Proportion | None  # of the window's predictions whose label is a digit; None without labels
    audited: Proportion | None  # of the window's labelled audit sample, which was drawn at random; None without any
    per_digit: dict[int, Proportion]  # of the window's labelled predictions, by true digit; NO_DIGIT for none
    estimate: float | None  # the mean calibrated confidence of the window's predictions; None when there are none
    estimate_error: float | None  # the same estimate for the newest stretch's labelled answers, minus their accuracy
    drifted: bool  # whether the window's images differ from the reference, so that the estimate means nothing

    @property
    def message(self) -> str:
        parts = [self._measured, self._window, "" if self.drifted else self._estimated]
        return " ".join(part for part in parts if part)

    @property
    def _measured(self) -> str:
        expected = f"expected: at least {self.least:.2%}"
        if self.newest is None or self.verdict == "not enough labels":
            count = self.newest.labels if self.newest else 0
            return f"Accuracy is not known: {count} of at least {MIN_LABELS} labels of the audit sample; {expected}."
        new = self.newest
        verdict = f"worse than expected since about {self.worse_since}" if self.worse_since else self.verdict
        measured = f"{new.value:.2%} ({new.low:.2%} to {new.high:.2%})"
        return (
            f"Accuracy is {verdict}: {measured} of {new.labels} audited predictions from {new.since} to {new.until} are "
            f"correct, {expected}."
        )

    @property
    def _window(self) -> str:
        if not self.audited:
            return ""
        return f"Of this window's {self.audited.count} audited predictions {self.audited.value:.2%} are correct."

    @property
    def _estimated(self) -> str:
        if self.estimate is None:
            return ""
        estimate, error = f"The estimate from the confidence is {self.estimate:.2%}", self.estimate_error
        if error is None or self.newest is None:
            return f"{estimate}; no label has confirmed it."
        too = f"{100 * abs(error):.1f} points too {'high' if error > 0 else 'low'}"
        return f"{estimate}; on the newest {self.newest.labels} audited predictions it was {too}."


def assess(
    reference: Reference,
    window: PredictionWindow,
    labelled: PredictionWindow | None = None,
    history: History | None = None,
    drifted: bool = False,
    digit_threshold: float | None = None,
) -> Accuracy:
    """The accuracy of a version against its own on held-out images, by all labelled audit answers in its history.

    `labelled` holds all labelled predictions of the window's time where the window is a sample; without a `history` its audit
    sample is all that is known. Only the audit sample decides the verdict: labels that users choose to send are mostly complaints.
    Below the threshold an image was answered as no digit, which is right where the label says the same; such labels are a figure
    of their own, because what is expected of a version is its accuracy on digits.
    """
    known = window if labelled is None else labelled
    right = audit.is_right(known.digits, known.labels, known.digit_scores, digit_threshold)
    shows_digit = known.labels != NO_DIGIT
    audited = known.audited & shows_digit
    history = history or _history(known, right, audited)
    expected, least = _expected(reference, history.accuracy_at_promotion)
    observed = observations(history)
    stretch, answers = _newest(observed, history)
    has_label = known.labels >= 0
    of_digits = has_label & shows_digit
    verdict, log_e_value = judge(observed, least)
    return Accuracy(
        verdict=verdict,
        expected=expected,
        least=least,
        evidence=log_e_value / np.log(10),
        newest=stretch,
        worse_since=_worse_since(observed, least, history) if verdict == "worse" else None,
        labelled=_accuracy(right[of_digits]) if of_digits.any() else None,
        audited=_accuracy(right[audited]) if audited.any() else None,
        per_digit={int(d): _accuracy(right[known.labels == d]) for d in np.unique(known.labels[has_label])},
        estimate=_estimate(reference, window.probabilities.max(axis=1, initial=0)),
        estimate_error=_estimate_error(reference, answers),
        drifted=drifted,
    )


def observations(history: History) -> Observations:
    """The labelled audit answers of one client on one day are one observation, their mean: digits of one writer are alike.

    Answers to unknown clients count one by one, and so do all where fewer than `MIN_CLIENTS` are known.
    """
    groups: dict[tuple[int, str], list[bool]] = defaultdict(list)
    by_client = len({answer.client for answer in history.answers if answer.client}) >= MIN_CLIENTS
    for answer in history.answers:
        day, writer = (answer.at.date() - history.since.date()).days, answer.client if by_client else ""
        groups[day, writer or answer.id].append(answer.is_right)
    ordered = sorted(groups.items(), key=lambda group: group[0][0])
    return Observations(
        np.array([np.mean(right) for _, right in ordered], np.float64),
        np.array([day for (day, _), _ in ordered], np.int64),
        np.array([len(right) for _, right in ordered], np.int64),
    )


def judge(observed: Observations, least: float) -> tuple[Verdict, float]:
    """The verdict and the logarithm of the e-value against an accuracy of at least `least`.

    *Worse* when it exceeds 2 / `ALPHA`, unless the newest stretch reaches `least`: a fall may end.
    """
    values, days, labels = observed
    if not len(values):
        return "not enough labels", 0.0
    _, log_e_value = _since_recovery(observed, least)
    if log_e_value >= np.log(2 / ALPHA) and values[days >= _stretch_start(observed)].mean() < least:
        return "worse", log_e_value
    return "as expected" if labels.sum() >= MIN_LABELS else "not enough labels", log_e_value


def _since_recovery(observed: Observations, least: float) -> tuple[int, float]:
    """The first day after the last fall that has ended, 0 without one, and the logarithm of the e-value since then.

    A fall ends when, after it was found, the mean of `RECOVERY` observations in a row reaches `least`. Its bets are left out then,
    which only loses capital: the chance of a false alarm in all time stays what it is.
    """
    values, days, _ = observed
    first_day = 0
    while True:
        since = int(np.searchsorted(days, first_day))
        path = sequential.log_e_values(values[since:], days[since:], least, first_day)
        fallen = np.flatnonzero(path >= np.log(2 / ALPHA))
        log_e_value = float(path[-1]) if len(path) else 0.0
        if not len(fallen):
            return first_day, log_e_value
        after = since + int(fallen[0]) + 1
        right = np.concatenate([[0.0], values[after:].cumsum()])
        ended = np.flatnonzero(right[RECOVERY:] - right[:-RECOVERY] >= RECOVERY * least)
        if not len(ended):
            return first_day, log_e_value
        first_day = int(days[after + ended[0] + RECOVERY - 1]) + 1


def _worse_since(observed: Observations, least: float, history: History) -> date:
    first_day, _ = _since_recovery(observed, least)
    newer = observed.days >= first_day
    return _day(history, sequential.likely_start(observed.values[newer], observed.days[newer], least))


def _stretch_start(observed: Observations) -> int:
    """The first day of the newest stretch: whole days, so that its interval belongs to a day on which bets start."""
    newer = observed.labels[::-1].cumsum()[::-1]  # from each observation on
    enough = observed.days[newer >= MIN_LABELS]
    return max(0, int(min(observed.days[-1] - STRETCH_DAYS + 1, enough[-1] if len(enough) else 0)))


def _newest(observed: Observations, history: History) -> tuple[Stretch | None, Sequence[AuditedAnswer]]:
    """The newest stretch and its answers."""
    if not len(observed.values):
        return None, ()
    start = _stretch_start(observed)
    values = observed.values[observed.days >= start]
    low, high = sequential.interval(values, start)
    answers = [answer for answer in history.answers if answer.at.date() >= _day(history, start)]
    stretch = Stretch(
        labels=len(answers),
        since=answers[0].at.date(),
        until=answers[-1].at.date(),
        value=float(values.mean()),
        low=low,
        high=high,
    )
    return stretch, answers


def _day(history: History, day: int) -> date:
    return history.since.date() + timedelta(days=day)


def _expected(reference: Reference, accuracy_at_promotion: Proportion | None) -> tuple[Proportion, float]:
    """The accuracy on the reference, and the lower of the exact bounds (Clopper and Pearson, Biometrika 26, 1934) of what is expected.

    A version that was promoted for its accuracy on new traffic is not worse because it was better on older images.
    """
    expected = _accuracy(reference.probabilities.argmax(axis=1) == reference.labels)
    known = [proportion for proportion in (expected, accuracy_at_promotion) if proportion]
    return expected, min(intervals.lower_bound(one.right, one.count, ALPHA / 2) for one in known)


def _history(window: PredictionWindow, right: NDArray[np.bool_], audited: NDArray[np.bool_]) -> History:
    chosen, probabilities = np.flatnonzero(audited), window.probabilities.max(axis=1, initial=0)
    answers = [
        AuditedAnswer(window.ids[n], window.at[n], window.clients[n], bool(right[n]), float(probabilities[n]))
        for n in chosen
    ]
    return History(answers, answers[0].at if answers else datetime.min)


def _accuracy(right: NDArray[np.bool_]) -> Proportion:
    return intervals.wilson(int(right.sum()), len(right))


def _estimate(reference: Reference, confidences: NDArray[np.floating]) -> float | None:
    """The mean of the version's accuracy on its reference at each confidence: isotonic regression; None without predictions.

    On images unlike the reference this is too high; `estimate_error` shows by how much, once there are labels.
    """
    from sklearn.isotonic import IsotonicRegression  # 1 s

    if not len(confidences):
        return None
    right = reference.probabilities.argmax(axis=1) == reference.labels
    calibration = IsotonicRegression(out_of_bounds="clip").fit(reference.probabilities.max(axis=1), right)
    return float(calibration.predict(confidences).mean())


def _estimate_error(reference: Reference, answers: Sequence[AuditedAnswer]) -> float | None:
    """The estimate for labelled answers minus their accuracy; None without any."""
    estimate = _estimate(reference, np.array([answer.probability for answer in answers]))
    return None if estimate is None else estimate - float(np.mean([answer.is_right for answer in answers]))
