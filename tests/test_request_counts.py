"""Request counts: what several workers counted is summed by route and status in a period."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from digits.storage import request_counts
from digits.storage.request_counts import Total

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def test_totals_sum_the_minutes_of_a_period(engine: Engine) -> None:
    request_counts.append(engine, NOON, [Total("/classify", 200, 3, 5, 1), Total("/classify", 422, 2, 0, 0)])
    request_counts.append(engine, NOON, [Total("/classify", 200, 1, 1, 0)])
    request_counts.append(engine, NOON + timedelta(minutes=1), [Total("/classify", 200, 4, 4, 4)])
    until = NOON + timedelta(minutes=1)
    assert request_counts.by_hour(engine, NOON, until) == [
        (0, Total("/classify", 200, 4, 6, 1)),
        (0, Total("/classify", 422, 2, 0, 0)),
    ]
    assert request_counts.by_hour(engine, until, until) == []


def test_old_counts_are_deleted(engine: Engine) -> None:
    for minute in range(3):
        request_counts.append(engine, NOON + timedelta(minutes=minute), [Total("/about", 200, 1, 0, 0)])
    request_counts.append(engine, NOON, [])
    request_counts.delete_before(engine, NOON + timedelta(minutes=2))
    assert request_counts.by_hour(engine, NOON, NOON + timedelta(hours=1)) == [(0, Total("/about", 200, 1, 0, 0))]


def test_hours_are_counted_from_the_start_of_the_period(engine: Engine) -> None:
    since = NOON - timedelta(minutes=30)
    for minutes in (-31, -30, 29, 30, 89, 90):
        request_counts.append(engine, NOON + timedelta(minutes=minutes), [Total("/classify", 200, 1, 2, 1)])
    assert request_counts.by_hour(engine, since, NOON + timedelta(minutes=90)) == [
        (0, Total("/classify", 200, 2, 4, 2)),
        (1, Total("/classify", 200, 2, 4, 2)),
    ]


def test_a_minute_that_has_just_begun_belongs_to_the_last_hour(engine: Engine) -> None:
    """Half a second after the full hour the counts of the new minute may be in the database already."""
    until = NOON + timedelta(seconds=0.5)
    request_counts.append(engine, NOON, [Total("/classify", 200, 1, 1, 0)])
    assert request_counts.by_hour(engine, until - timedelta(hours=2), until) == [(1, Total("/classify", 200, 1, 1, 0))]
