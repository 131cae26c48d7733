"""`digits monitor`: the latest answers against what their version was tested on; a report, a verdict, an event."""

import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from digits import reference
from digits.settings import Settings, settings

if TYPE_CHECKING:
    from models.champion import Champion

log = logging.getLogger("digits.monitor")

UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@flow(name="monitor")
def monitor(since: str = "24h") -> str:
    """Report drift and accuracy of the latest answers of the champion; the verdict in a sentence."""
    where = settings()
    champion = load(where)
    known = reference.from_bytes((where.champions / champion.version / "reference.npz").read_bytes())
    window = read(where, champion.version, since)
    report = examine(known, window, champion, where)
    return report


def duration(text: str) -> timedelta:
    """The time that `30m`, `24h` or `7d` stands for; raises ValueError."""
    match = re.fullmatch(r"(\d+)([mhd])", text)
    if not match:
        raise ValueError(f"cannot read {text!r} as a time; write it like 30m, 24h or 7d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


@task(cache_policy=NO_CACHE)
def load(where: Settings) -> "Champion":
    """The champion, verified."""
    from models import champion

    return champion.fetch(where.mlflow_tracking_uri, "champion", where.champions)
