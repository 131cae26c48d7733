"""Windows of time as people write them: `24h`, `2026-01-05` or `2026-01-05T08:00`, in UTC."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

MAX_WINDOWS = 2_000

TimeRange = tuple[datetime, datetime]


def parse_since(since: str, until: datetime) -> datetime:
    """The start of a window of `24h`, or of one since `2026-01-05T08:00`; raises ValueError."""
    return until - parse_duration(since) if is_duration(since) else parse_time(since)


def is_duration(since: str) -> bool:
    """Whether it is meant as one: `24h`, not `2026-01-05`."""
    return bool(re.fullmatch(r"\d+\w", since))


def parse_time(text: str) -> datetime:
    """The time that `2026-01-05` or `2026-01-05T08:00` stands for, UTC unless it says otherwise; raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"cannot read {text!r} as a time; write it like 24h or 2026-01-05T08:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def parse_duration(text: str) -> timedelta:
    """The time that `30m`, `24h` or `7d` stands for; raises ValueError."""
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if not match or not int(match[1]):
        raise ValueError(f"cannot read {text!r} as a time; write it like 30m, 24h or 7d")
    return int(match[1]) * {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}[match[2]]


def split(begin: str, end: str, every: str) -> Iterator[TimeRange]:
    """Windows from `begin` to `end`, the last one shorter where the length does not divide; raises ValueError."""
    start, stop, step = parse_time(begin), parse_time(end), parse_duration(every)
    if start >= stop:
        raise ValueError(f"{begin} is not before {end}; nothing lies between them")
    if (stop - start) / step > MAX_WINDOWS:
        raise ValueError(f"{begin} to {end} is more than {MAX_WINDOWS:,} windows of {every}; take longer ones")
    while start < stop:
        yield start, min(start + step, stop)
        start += step
