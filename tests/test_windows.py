"""Windows of time are read from text and split into equal parts."""

from datetime import UTC, datetime, timedelta

import pytest

from monitoring.windows import parse_since, parse_time, split


def test_days_are_cut_into_windows_and_the_last_one_is_what_remains() -> None:
    found = list(split("2026-01-05", "2026-01-07T06:00", "24h"))
    assert [start.isoformat() for start, _ in found] == [f"2026-01-0{day}T00:00:00+00:00" for day in (5, 6, 7)]
    assert [(end - start) / timedelta(hours=1) for start, end in found] == [24, 24, 6]


def test_a_moment_is_utc_unless_it_says_otherwise() -> None:
    assert parse_time("2026-01-05T08:00") == datetime(2026, 1, 5, 8, tzinfo=UTC)
    assert parse_time("2026-01-05T08:00+02:00") == datetime(2026, 1, 5, 6, tzinfo=UTC)


def test_a_window_begins_so_long_ago_or_at_a_moment() -> None:
    now = datetime(2026, 1, 5, 8, tzinfo=UTC)
    assert parse_since("90m", now) == datetime(2026, 1, 5, 6, 30, tzinfo=UTC)
    assert parse_since("2026-01-05T07:59:30", now) == datetime(2026, 1, 5, 7, 59, 30, tzinfo=UTC)
    for wrong in ("24x", "0h", "soon"):
        with pytest.raises(ValueError, match=wrong):
            parse_since(wrong, now)


@pytest.mark.parametrize(
    ("begin", "end", "every", "message"),
    [
        ("yesterday", "2026-01-05", "24h", "'yesterday'"),
        ("2026-01-05", "2026-01-05", "24h", "not before"),
        ("2026-01-05", "2026-01-06", "0m", "'0m'"),
        ("2020-01-01", "2026-01-01", "1m", "more than 2,000 windows"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_words_given(begin: str, end: str, every: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(split(begin, end, every))
