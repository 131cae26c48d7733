"""Traffic that stops, is refused or becomes uncertain: with few requests as with many, on young platforms, and without false alarms."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from digits.storage.request_counts import Total
from monitoring import traffic
from monitoring.traffic import DAY, HOURS, WEEK, Hours

UNTIL = datetime(2026, 3, 2, tzinfo=UTC)  # a Monday
LONG_AGO = UNTIL - timedelta(days=90)


def counted(answered: np.ndarray, refused: np.ndarray | int = 0, uncertain: np.ndarray | int = 0) -> Hours:
    """Hourly counts, one image a request."""
    refused, uncertain = np.zeros(HOURS, int) + refused, np.zeros(HOURS, int) + uncertain
    return Hours(answered + refused, answered, refused, answered, uncertain, {422: refused})


def steady(per_hour: int) -> np.ndarray:
    return np.full(HOURS, per_hour)


def office(per_hour: int) -> np.ndarray:
    """Monday to Friday, eight to six."""
    hour = np.arange(HOURS)
    return np.where((hour % DAY >= 8) & (hour % DAY < 18) & (hour // DAY % 7 < 5), per_hour, 0)


def events(hours: Hours, last_label: datetime | None = None, serving_since: datetime = LONG_AGO) -> list[str]:
    return [problem.event for problem in traffic.problems(hours, UNTIL, serving_since, last_label)]


def test_the_counts_of_all_routes_that_classify_are_summed() -> None:
    rows = [
        (5, Total("/classify", 200, 3, 9, 2)),
        (5, Total("/classify_file", 200, 1, 4, 1)),
        (5, Total("/classify", 422, 2, 0, 0)),
        (6, Total("/classify_bulk", 503, 1, 0, 0)),
        (6, Total("/feedback", 404, 50, 0, 0)),
        (6, Total("other", 404, 50, 0, 0)),
    ]
    found = traffic.hours(rows)
    assert (found.requests[5], found.answered[5], found.refused[5]) == (6, 4, 2)
    assert (found.images[5], found.uncertain[5]) == (13, 3)
    assert (found.requests[6], found.refused.sum(), found.statuses[503][6], found.first) == (1, 3, 1, 5)
    assert traffic.hours([]).first == HOURS


def test_a_fresh_platform_is_no_alarm() -> None:
    assert events(counted(steady(0))) == []
    few = steady(0)
    few[-3] = 5
    assert events(counted(few)) == []
    found = traffic.assess(counted(steady(0)), UNTIL, LONG_AGO, None)
    assert (found.requests, found.refused, found.silent_hours, found.message) == (0, None, None, "")


@pytest.mark.parametrize(("per_hour", "hours"), [(1, 25), (4, 7), (100, 2)])
def test_silence_after_traffic_is_told_sooner_the_more_there_was(per_hour: int, hours: int) -> None:
    answered = steady(per_hour)
    answered[-hours:] = 0
    (problem,) = traffic.problems(counted(answered), UNTIL, LONG_AGO, None)
    assert problem.event == "no traffic"
    usual = f"the same hours of the weeks before had {per_hour * hours} on average"
    assert problem.message == f"No request was answered for {hours} hours, although {usual}."
    answered[-hours // 2 :] = per_hour
    assert events(counted(answered)) == []


def test_a_weekend_is_no_silence_and_a_silent_monday_is() -> None:
    friday_to_monday = office(10)  # ends with a Sunday
    assert events(counted(friday_to_monday)) == []
    monday = np.roll(friday_to_monday, -12)  # ends with a Monday at noon
    assert events(counted(monday)) == []
    monday[-12:] = 0
    assert events(counted(monday)) == ["no traffic"]


@pytest.mark.parametrize("by", [-1, 1])
def test_no_silence_when_the_clocks_of_the_clients_change(by: int) -> None:
    """Office hours move by an hour in UTC on a Sunday; at every hour of the next three days."""
    before = office(100)
    series = np.concatenate([before, np.roll(before, by)[:WEEK]])
    for hours in range(1, 3 * DAY):
        assert events(counted(series[hours : hours + HOURS])) == []
    series[HOURS + DAY :] = 0
    assert events(counted(series[36 : 36 + HOURS])) == ["no traffic"]


def test_refusals_of_half_of_five_requests_a_day_are_told_within_a_week() -> None:
    hour = np.arange(HOURS)
    requested, recent = (hour % 5 == 0).astype(int), hour >= HOURS - 6 * DAY
    assert events(counted(requested)) == []
    refused = requested * recent * (hour % 10 == 0)
    (problem,) = traffic.problems(counted(requested - refused, refused), UNTIL, LONG_AGO, None)
    assert problem.event == "refusals"
    assert problem.message.startswith("47% of the requests of the last 150 hours were refused")


def test_the_first_week_waits_longer_than_a_weekend() -> None:
    young = office(10)
    young[: HOURS - WEEK] = 0
    assert events(counted(young)) == []
    for hours, told in ((14, []), (20, ["no traffic"])):  # on Monday
        silent = np.roll(young, -hours)
        silent[-hours:] = 0
        assert events(counted(silent)) == told


def test_a_day_with_a_tenth_of_the_volume_is_told_and_half_is_not() -> None:
    for share, told in ((0.1, ["no traffic"]), (0.5, [])):
        answered = steady(10)
        answered[-DAY:] = 10 * share
        assert events(counted(answered)) == told


def test_refusals_are_told_with_their_status_also_if_nothing_is_answered_and_there_is_no_history() -> None:
    refused = steady(0)
    refused[-DAY:] = 1
    (problem,) = traffic.problems(counted(steady(0), refused), UNTIL, LONG_AGO, None)
    assert problem.event == "refusals"
    assert problem.message.startswith(
        "100% of the requests of the last 24 hours were refused or failed (422 Unprocessable"
    )
    assert problem.message.endswith(": 24), before 0.0%.")


def test_a_usual_share_of_refusals_is_no_alarm_and_a_sudden_one_is_told_within_hours() -> None:
    refused = steady(4)
    assert events(counted(steady(16), refused)) == []
    refused[-3:] = 16
    assert events(counted(steady(16), refused)) == ["refusals"]


def test_an_outage_of_last_week_does_not_hide_the_next() -> None:
    answered, refused = steady(20), steady(0)
    for outage in (slice(-4 * DAY, -3 * DAY), slice(-3, None)):
        answered[outage], refused[outage] = 0, 20
    assert "refusals" in events(counted(answered, refused))


def test_a_rise_of_uncertain_answers_is_told_with_fifty_answers_a_day() -> None:
    answered, uncertain = steady(2), steady(0)
    uncertain[::20] = 1
    assert events(counted(answered, uncertain=uncertain)) == []
    uncertain[-DAY:] = 1
    (problem,) = traffic.problems(counted(answered, uncertain=uncertain), UNTIL, LONG_AGO, None)
    assert (problem.event, problem.message) == (
        "uncertainty",
        "The share of uncertain answers rose from 2.1% to 50.0% in the last 24 hours.",
    )


def test_a_new_version_is_not_compared_with_the_one_before() -> None:
    answered, uncertain = steady(20), steady(0)
    uncertain[-2 * DAY :] = 10
    uncertain[: -2 * DAY : 5] = 1
    assert events(counted(answered, uncertain=uncertain)) == ["uncertainty"]
    assert events(counted(answered, uncertain=uncertain), serving_since=UNTIL - timedelta(days=2)) == []


def test_uncertain_answers_that_always_come_in_groups_are_weaker_evidence() -> None:
    answered, grouped = steady(20), steady(0)
    grouped[10::40] = 20
    even = steady(0)
    even[::2] = 1
    for uncertain, told in ((grouped, []), (even, ["uncertainty"])):
        uncertain[-20:-10] = 0
        uncertain[-4:-1] = 20
        assert events(counted(answered, uncertain=uncertain)) == told


def test_labels_that_stopped_are_told_once_there_were_some() -> None:
    answered = counted(steady(2))
    assert events(answered, None) == []
    assert events(answered, UNTIL - timedelta(days=9)) == []
    (problem,) = traffic.problems(answered, UNTIL, LONG_AGO, UNTIL - timedelta(days=11))
    assert problem.event == "no labels"
    assert problem.message.startswith("No label of the audit sample came for 11 days, in which 528 images were")
    assert events(counted(steady(0)), UNTIL - timedelta(days=11)) == []


def test_the_figures_of_a_day() -> None:
    found = traffic.assess(counted(steady(9), steady(1), steady(3)), UNTIL, LONG_AGO, LONG_AGO)
    assert (found.requests, found.images, found.usual_requests, found.silent_hours) == (240, 216, 216, 0)
    assert found.refused is not None and (found.refused.right, found.refused.count) == (24, 240)
    assert found.uncertain is not None and (found.uncertain.right, found.uncertain.count) == (72, 216)


def test_clients_that_do_not_wait_are_named() -> None:
    answered, gone = steady(20), np.zeros(HOURS, int)
    answered[-3:], gone[-3:] = 0, 20
    hours = Hours(answered + gone, answered, gone, answered, gone * 0, {499: gone})
    messages = [problem.message for problem in traffic.problems(hours, UNTIL, LONG_AGO, None)]
    assert "(499 Client Closed Request: 60)" in messages[1]
