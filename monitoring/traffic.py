"""Detects traffic that stops, is refused or becomes uncertain, and labels that stop, from the counts of requests."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from digits import intervals
from digits.intervals import Proportion
from digits.storage.request_counts import MIN_KEPT, Total

ROUTES = ("/classify", "/classify_file", "/read", "/classify_bulk")  # that classify images
DAY, WEEK = 24, 168  # hours
HOURS = MIN_KEPT // timedelta(hours=1)  # that are read
WEEKS = HOURS // WEEK - 1  # before the present one, with whose same hours the volume is compared

# A test per hour and kind over a hundred years is a million tests.
MAX_P_VALUE = 1e-6
MIN_SILENT_HOURS = 2
FIRST_WEEK_SILENT_HOURS = 72  # while no earlier week is known: longer than a weekend
MIN_ANSWERED = 20  # requests before the silence, in the first week
CLOCK_CHANGE = 1  # hour by which the clients' days may move in UTC
MAX_VOLUME = 0.2  # of the smallest earlier week, for a loss of volume
SPANS = (3, DAY)  # hours for which refusals and uncertain answers are counted
MIN_COUNTED = 30  # requests, or images; with fewer in a day the span is longer, a week at most
PRIOR = 1, 100  # counted as usual in addition, so that a platform without a past is judged, too
OUTAGE_DAYS, MIN_USUAL_DAYS = 2, 5  # of the week before, which one outage must not change
MIN_RISE, MIN_RELATIVE_RISE = 0.05, 0.5  # the larger of a rise by five points and by half
MIN_COUNT = 10  # refused requests, or uncertain answers
MAX_DISPERSION = 10.0  # uncertain answers come in groups
MAX_LABEL_AGE = timedelta(days=10)

Event = Literal["no traffic", "refusals", "uncertainty", "no labels"]
Counts = NDArray[np.int64]


class Problem(BaseModel, frozen=True):
    """Something that needs attention."""

    event: Event
    message: str


class Traffic(BaseModel, frozen=True):
    """The requests of the last 24 hours to the routes that classify, compared with the weeks before."""

    requests: int
    images: int  # that were classified
    usual_requests: float | None  # answered ones in the same hours of the weeks before; None in the first week
    silent_hours: int | None  # since the last answer; None where none is known
    refused: Proportion | None  # of the requests; None without any
    uncertain: Proportion | None  # of the classified images; None without any
    last_label: datetime | None  # when an auditor gave the newest label
    problems: tuple[Problem, ...]

    @property
    def message(self) -> str:
        return " ".join(problem.message for problem in self.problems)


@dataclass(frozen=True)
class Hours:
    """What was counted in each of the last hours, the oldest first; arrays of the same length."""

    requests: Counts
    answered: Counts  # requests
    refused: Counts  # requests
    images: Counts
    uncertain: Counts  # of the images
    statuses: dict[int, Counts]  # requests with each status of a refusal

    @property
    def first(self) -> int:
        """The first hour with a request; the number of hours if there is none."""
        found = np.flatnonzero(self.requests)
        return int(found[0]) if len(found) else len(self.requests)


def hours(counts: Iterable[tuple[int, Total]], length: int = HOURS) -> Hours:
    """Hourly counts from totals by the number of their hour; those of other routes, such as pages and feedback, are left out."""
    requests, answered, refused, images, uncertain = np.zeros((5, length), np.int64)
    statuses: dict[int, Counts] = {}
    for hour, total in counts:
        if total.route not in ROUTES:
            continue
        requests[hour] += total.requests
        images[hour] += total.images
        uncertain[hour] += total.uncertain
        (answered if total.status < 400 else refused)[hour] += total.requests
        if total.status >= 400:
            statuses.setdefault(total.status, np.zeros(length, np.int64))[hour] += total.requests
    return Hours(requests, answered, refused, images, uncertain, statuses)


def assess(counted: Hours, until: datetime, serving_since: datetime, last_label: datetime | None) -> Traffic:
    """What the hours before `until` show; the share of uncertain answers is compared within the version that serves since then."""
    requests, images = int(counted.requests[-DAY:].sum()), int(counted.images[-DAY:].sum())
    earlier = _earlier_weeks(counted, DAY)
    return Traffic(
        requests=requests,
        images=images,
        usual_requests=float(np.mean(earlier)) if earlier else None,
        silent_hours=_silent_hours(counted),
        refused=intervals.wilson(int(counted.refused[-DAY:].sum()), requests) if requests else None,
        uncertain=intervals.wilson(int(counted.uncertain[-DAY:].sum()), images) if images else None,
        last_label=last_label,
        problems=problems(counted, until, serving_since, last_label),
    )


def problems(
    counted: Hours, until: datetime, serving_since: datetime, last_label: datetime | None
) -> tuple[Problem, ...]:
    """What needs attention, at most one problem of each kind; empty on a platform that has had no traffic."""
    began = len(counted.requests) - int((until - serving_since) / timedelta(hours=1))
    found = (
        _silence(counted) or _lost_volume(counted),
        _refusals(counted),
        _uncertainty(counted, max(began, counted.first)),
        _unlabelled(counted, until, last_label),
    )
    return tuple(problem for problem in found if problem)


def _silent_hours(counted: Hours) -> int | None:
    answered = np.flatnonzero(counted.answered)
    return len(counted.answered) - 1 - int(answered[-1]) if len(answered) else None


def _earlier_weeks(counted: Hours, span: int, until: int = 0) -> list[int]:
    """The answered requests in `span` hours, the last one `until` hours ago, of each earlier week since the first request."""
    ends = [len(counted.answered) - until - WEEK * week for week in range(1, WEEKS + 1)]
    return [int(counted.answered[end - span : end].sum()) for end in ends if end - span >= counted.first]


def _fewest(counted: Hours, span: int) -> list[int]:
    """These requests without those of the first or the last hour, whichever leaves fewer: the clients' clocks may have changed."""
    shorter = (_earlier_weeks(counted, span - CLOCK_CHANGE, until) for until in (0, CLOCK_CHANGE))
    return [min(counts) for counts in zip(*shorter, strict=False)]


def _silence(counted: Hours) -> Problem | None:
    """No answer for hours in which earlier weeks had answers; in the first week, for three days."""
    silent = _silent_hours(counted)
    if silent is None or silent < MIN_SILENT_HOURS:
        return None
    earlier = _earlier_weeks(counted, min(silent, WEEK))
    if earlier and _is_less(0, _fewest(counted, min(silent, WEEK))):
        usual = _usual_volume(earlier)
    elif not earlier and silent >= FIRST_WEEK_SILENT_HOURS and counted.answered.sum() >= MIN_ANSWERED:
        usual = f"there were {counted.answered.sum():,} before"
    else:
        return None
    return Problem(event="no traffic", message=f"No request was answered for {silent} hours, although {usual}.")


def _lost_volume(counted: Hours) -> Problem | None:
    """Far fewer answers in a day than on the same day of any earlier week."""
    now, earlier, fewest = int(counted.answered[-DAY:].sum()), _earlier_weeks(counted, DAY), _fewest(counted, DAY)
    if not earlier or now > MAX_VOLUME * min(fewest) or not _is_less(now, fewest):
        return None
    message = f"Only {now:,} requests were answered in {DAY} hours; {_usual_volume(earlier)}."
    return Problem(event="no traffic", message=message)


def _usual_volume(earlier: list[int]) -> str:
    return f"the same hours of the weeks before had {np.mean(earlier):,.0f} on average"


def _is_less(now: int, earlier: list[int]) -> bool:
    """Whether a Poisson count is smaller than earlier ones of the same rate would be by chance.

    Given their sum, it is binomial (Przyborowski and Wilenski, Biometrika 31, 1940).
    """
    from scipy.special import bdtr  # 1 s

    return bool(bdtr(now, now + sum(earlier), 1 / (1 + len(earlier))) <= MAX_P_VALUE)


def _refusals(counted: Hours) -> Problem | None:
    """A larger share of refused requests than in the seven days before; any large share where nothing is known yet."""
    for span in _spans(counted.requests):
        if rise := _rise(counted.refused, counted.requests, span, counted.first):
            now, usual = rise
            statuses = {status: int(hourly[-span:].sum()) for status, hourly in counted.statuses.items()}
            reasons = ", ".join(
                f"{status} {_phrase(status)}: {count:,}"
                for status, count in sorted(statuses.items(), key=lambda item: -item[1])
                if count
            )
            message = f"{now:.0%} of the requests of the last {span} hours were refused or failed ({reasons}), before {usual:.1%}."
            return Problem(event="refusals", message=message)
    return None


def _phrase(status: int) -> str:
    # The service's own for a client that did not wait for its response.
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase


def _uncertainty(counted: Hours, first: int) -> Problem | None:
    """A larger share of uncertain answers than the version gave in the seven days before, of which it needs one."""
    for span in _spans(counted.images):
        if len(counted.images) - span - first < DAY or not counted.images[first:-span].any():
            return None
        if rise := _rise(counted.uncertain, counted.images, span, first, grouped=True):
            now, usual = rise
            message = f"The share of uncertain answers rose from {usual:.1%} to {now:.1%} in the last {span} hours."
            return Problem(event="uncertainty", message=message)
    return None


def _spans(counts: Counts) -> tuple[int, ...]:
    """The spans for which a share is counted, in hours: with few a day one more, which goes back until it holds enough."""
    longer = int(np.searchsorted(counts[::-1].cumsum(), MIN_COUNTED)) + 1
    return (*SPANS, min(longer, WEEK)) if longer > DAY else SPANS


def _rise(part: Counts, whole: Counts, span: int, first: int, grouped: bool = False) -> tuple[float, float] | None:
    """The share in the last `span` hours and the usual one, if it is larger by more than chance and enough to matter.

    By Fisher's exact test (J. R. Stat. Soc. 98, 1935), which allows for a usual share that is known from few counts. Counts that
    come in groups have the information of 1 / dispersion as many independent ones.
    """
    from scipy.stats import hypergeom  # 1 s

    count, total = int(part[-span:].sum()), int(whole[-span:].sum())
    if count < MIN_COUNT or count < MIN_RISE * total:
        return None
    usual_count, usual_total = _usual(part, whole, span, first)
    share, usual = count / total, usual_count / max(usual_total, 1)
    if share < usual + max(MIN_RISE, MIN_RELATIVE_RISE * usual):
        return None
    past = slice(first, len(whole) - span)
    dispersion = _dispersion(part[past], whole[past]) if grouped else 1.0
    now, before = math.floor(count / dispersion), math.ceil(usual_count / dispersion) + PRIOR[0]
    trials, all_trials = math.ceil(total / dispersion), math.ceil((total + usual_total) / dispersion) + PRIOR[1]
    p_value = hypergeom.sf(now - 1, all_trials, now + before, trials)
    return (share, usual) if p_value <= MAX_P_VALUE else None


def _usual(part: Counts, whole: Counts, span: int, first: int) -> tuple[int, int]:
    """The counts of up to seven days before the span, without the two of the largest share where there are five: an outage ends."""
    ends = [len(whole) - span - DAY * day for day in range(WEEK // DAY)]
    days = [slice(max(end - DAY, first, 0), end) for end in ends if end > first]
    counts = [(int(part[day].sum()), int(whole[day].sum())) for day in days if whole[day].any()]
    counts.sort(key=lambda day: day[0] / day[1])
    kept = counts[: len(counts) - OUTAGE_DAYS] if len(counts) >= MIN_USUAL_DAYS else counts
    return sum(day[0] for day in kept), sum(day[1] for day in kept)


def _dispersion(part: Counts, whole: Counts) -> float:
    """How much more the hourly counts vary than independent ones would: Pearson's chi-square over its degrees of freedom, 1 to 10."""
    part, whole = part[whole > 0], whole[whole > 0]
    share = part.sum() / whole.sum()
    if len(whole) < 2 or not 0 < share < 1:
        return 1.0
    chi_square = ((part - share * whole) ** 2 / (whole * share * (1 - share))).sum()
    return float(np.clip(chi_square / (len(whole) - 1), 1.0, MAX_DISPERSION))


def _unlabelled(counted: Hours, until: datetime, last_label: datetime | None) -> Problem | None:
    """No label of the audit sample for ten days with answers, after there were some."""
    if last_label is None or until - last_label < MAX_LABEL_AGE:
        return None
    images = int(counted.images[-int((until - last_label) / timedelta(hours=1)) :].sum())
    if not images:
        return None
    age = f"No label of the audit sample came for {(until - last_label).days} days"
    return Problem(event="no labels", message=f"{age}, in which {images:,} images were answered; label some at /label.")
