"""Alerts: a JSON POST to a webhook about something that needs attention, once per cooldown."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from digits.settings import Settings
from digits.storage import cooldowns, database

log = logging.getLogger("flows.alerts")


@dataclass(frozen=True)
class Alert:
    """One alert; another one with the same `event` and `about` is not sent within the cooldown."""

    event: str  # "drift", "accuracy", "no traffic", "refusals", "uncertainty", "no labels", "retraining failed"
    about: str  # the version and the explanations of its drift, or the type of the error
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON values


def send(settings: Settings, alert: Alert) -> bool:
    """POST the alert unless no webhook is set or the same alert was sent within the cooldown.

    Returns whether it was delivered; a failed delivery is logged, and the next alert is sent again. While the database is
    unreachable the cooldowns are unknown, and the alert is sent.
    """
    if settings.alert_url is None:
        return False
    name, now = f"alert {alert.event} {alert.about}"[:255], datetime.now(UTC)
    with suppress(*database.ERRORS):
        last = cooldowns.at(database.connect(settings.database_url), name)
        if last is not None and now - last < timedelta(hours=settings.alert_cooldown_hours):
            return False
    at = now.isoformat(timespec="seconds")
    body = {"event": alert.event, "about": alert.about, "message": alert.message, "at": at, **alert.details}
    try:
        httpx.post(settings.alert_url, json=body, timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"status {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)
        log.warning("the webhook did not accept the alert %r (%s): %s", alert.event, reason, alert.message)
        return False
    with suppress(*database.ERRORS):
        cooldowns.put(database.connect(settings.database_url), name, now)
    return True
