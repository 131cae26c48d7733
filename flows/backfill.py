"""`digits monitor --from … --to …`: reports on past windows, each about the version that answered in it."""

import logging
from collections.abc import Iterator
from datetime import datetime

from prefect import flow

from digits.storage import predictions
from flows import monitor
from flows.connections import Platform

log = logging.getLogger("digits.backfill")

MAX_WINDOWS = 2_000


@flow(name="backfill")
def backfill(begin: str, end: str, every: str = "24h") -> list[str]:
    """Report on every window from one day (2026-01-05) or moment (2026-01-05T08:00) to another, UTC; a line for each.

    Existing reports of these windows are replaced. Past windows cause no alert and no retraining.
    """
    platform = Platform()
    lines = [
        report(platform, window, version)
        for window in windows(begin, end, every)
        for version in predictions.versions_between(platform.engine, *window)
    ]
    if not lines:
        log.info("there are no answers from %s to %s", begin, end)
    return lines


def windows(begin: str, end: str, every: str) -> Iterator[tuple[datetime, datetime]]:
    """Windows from `begin` to `end`, the last one shorter where the length does not divide; raises ValueError."""
    start, stop, step = monitor.moment(begin), monitor.moment(end), monitor.duration(every)
    if start >= stop:
        raise ValueError(f"{begin} is not before {end}; nothing lies between them")
    if (stop - start) / step > MAX_WINDOWS:
        raise ValueError(
            f"from {begin} to {end} there are more than {MAX_WINDOWS:,} windows of {every}; take longer ones"
        )
    while start < stop:
        yield start, min(start + step, stop)
        start += step


def report(platform: Platform, window: tuple[datetime, datetime], version: str) -> str:
    """Write the report of one window and version; its verdict in a line."""
    version, _, reference = monitor.load(platform, version)
    answers, labelled = monitor.read(platform, version, *window)
    verdict = monitor.judge(reference, answers, labelled)
    written = monitor.write(platform.settings, version, window, reference, answers, verdict)
    line = f"{window[0]:%Y-%m-%d %H:%M}, digits v{version}, {verdict.count} answers: {verdict.message}"
    log.info("%s", line)
    log.info("report: %s", written.html or written.verdict)
    return line
