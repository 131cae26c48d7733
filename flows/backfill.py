"""`digits monitor --from … --to …`: reports on past windows, each about the version that answered in it."""

import logging

from prefect import flow

from digits.storage import predictions
from flows import monitor
from models.connections import Platform
from monitoring import windows

log = logging.getLogger("digits.backfill")


@flow(name="backfill")
def backfill(begin: str, end: str, every: str = "24h") -> list[str]:
    """Report on every window from one day (2026-01-05) or time (2026-01-05T08:00) to another, UTC. Returns a line for each.

    Existing reports of these windows are replaced. Past windows cause no alert and no retraining.
    """
    platform = Platform()
    lines = []
    for window in windows.split(begin, end, every):
        for version in sorted(predictions.counts(platform.engine, *window)):
            verdict, path = monitor.report(platform, monitor.load(platform, version), window)
            lines.append(f"{window[0]:%Y-%m-%d %H:%M}, digits v{version}, {verdict.count} answers: {verdict.message}")
            log.info("%s; report: %s", lines[-1], path)
    if not lines:
        log.info("there are no answers from %s to %s", begin, end)
    return lines
