"""`digits monitor --from … --to …`: past windows computed again, each by the version that answered in it."""

import logging
from collections.abc import Iterator
from datetime import datetime

from prefect import flow

from digits.settings import Settings, load_settings
from digits.storage import database, predictions
from flows import monitor

log = logging.getLogger("digits.backfill")

MOST_WINDOWS = 2_000


@flow(name="backfill")
def backfill(begin: str, end: str, every: str = "24h") -> list[str]:
    """Report on every window from one day (2026-01-05) or moment (2026-01-05T08:00) to another, UTC; a line for each.

    Done again, the reports are replaced. Nobody is told and nothing retrained: that time is over.
    """
    settings = load_settings()
    found = [
        report(window, version, settings) for window in windows(begin, end, every) for version in _who(window, settings)
    ]
    if not found:
        log.info("there are no answers from %s to %s", begin, end)
    return found


def windows(begin: str, end: str, every: str) -> Iterator[tuple[datetime, datetime]]:
    """From the one to the other, the last one shorter where it does not fit; raises ValueError."""
    start, stop, step = monitor.moment(begin), monitor.moment(end), monitor.duration(every)
    if start >= stop:
        raise ValueError(f"{begin} is not before {end}; nothing lies between them")
    if (stop - start) / step > MOST_WINDOWS:
        raise ValueError(
            f"from {begin} to {end} there are more than {MOST_WINDOWS:,} windows of {every}; take longer ones"
        )
    while start < stop:
        yield start, min(start + step, stop)
        start += step


def report(window: tuple[datetime, datetime], version: str, settings: Settings) -> str:
    """Write the report of one window and version; the verdict in a line."""
    since, until = window
    version, _, reference = monitor.load(settings, version)
    answers, labelled = monitor.read(version, since, until, settings)
    verdict = monitor.judge(reference, answers, labelled)
    written = monitor.write(version, since, until, reference, answers, verdict, settings)
    line = f"{since:%Y-%m-%d %H:%M}, digits v{version}, {verdict.count} answers: {verdict.message}"
    log.info("%s", line)
    log.info("report: %s", written.html or written.verdict)
    return line


def _who(window: tuple[datetime, datetime], settings: Settings) -> list[str]:
    return predictions.versions_between(database.connect(settings.database_url), *window)
