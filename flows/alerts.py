"""Alerts: a JSON POST to a webhook when somebody should look, and not again for the same thing until a while later."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from digits.storage import cooldowns, database

log = logging.getLogger("flows.alerts")

TIMEOUT = httpx.Timeout(10, connect=3)  # seconds


@dataclass(frozen=True)
class Alert:
    """Something that a person should know."""

    event: str  # "drift", "accuracy", "retraining failed"
    about: str  # of two alerts with the same event about the same, the second is not sent within the cooldown
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)  # as JSON has them


def send(url: str | None, database_url: str, alert: Alert, cooldown: timedelta) -> bool:
    """POST the alert, unless no webhook is set or the same was sent within the cooldown; whether it arrived.

    A webhook that does not take it is no error of whoever raises the alert: it is logged, and the next alert tries again. While
    the database is away nobody knows what was sent before, and the alert goes out.
    """
    if url is None:
        return False
    name, now = f"alert {alert.event} {alert.about}"[:255], datetime.now(UTC)
    with suppress(*database.ERRORS):
        before = cooldowns.at(database.connect(database_url), name)
        if before is not None and now - before < cooldown:
            return False
    body = {
        "event": alert.event,
        "about": alert.about,
        "message": alert.message,
        "at": now.isoformat(timespec="seconds"),
        **alert.details,
    }
    try:
        httpx.post(url, json=body, timeout=TIMEOUT).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"it answered {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)
        log.warning("the webhook does not take the alert %r (%s): %s", alert.event, reason, alert.message)
        return False
    with suppress(*database.ERRORS):
        cooldowns.put(database.connect(database_url), name, now)
    return True
