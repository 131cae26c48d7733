"""Alerts: a message to all channels of `DIGITS_ALERT_URLS` about something that needs attention, once per cooldown."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from digits.settings import Settings
from digits.storage import cooldowns, database
from flows import channels, tasks
from flows.channels import Delivery, Message

log = logging.getLogger("digits.alerts")

# Of Apprise: a channel may show it as a colour or an icon. All others are warnings.
KINDS = {"retraining failed": "failure", "accuracy": "failure", "test": "info"}


@dataclass(frozen=True)
class Alert:
    """One alert; another one with the same `event` and `about` is not sent within the cooldown."""

    event: str  # "drift", "accuracy", "no traffic", "refusals", "uncertainty", "no labels", "approval", "retraining failed", "test"
    about: str  # the version and the explanations of its drift, or the type of the error
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON values


def send(settings: Settings, alert: Alert) -> bool:
    """Send the alert to all channels, unless the same one was sent within the cooldown. Returns whether one accepted it.

    A failed delivery is logged; if all fail, the next alert is sent again. While the database is unreachable the cooldowns are
    unknown, and the alert is sent.
    """
    if not settings.alert_urls:
        return False
    name, now = f"alert {alert.event} {alert.about}"[:255], datetime.now(UTC)
    with suppress(*database.ERRORS):
        last = cooldowns.at(database.connect(settings.database_url), name)
        if last is not None and now - last < timedelta(hours=settings.alert_cooldown_hours):
            return False
    deliveries = deliver(settings, alert)
    for delivery in deliveries:
        if delivery.problem:
            problem = f"the {alert.event!r} alert did not reach {delivery.channel}: {delivery.problem}"
            log.warning("%s; it says: %s", problem, alert.message)
    if all(delivery.problem for delivery in deliveries):
        return False
    with suppress(*database.ERRORS):
        cooldowns.put(database.connect(settings.database_url), name, now)
    return True


def deliver(settings: Settings, alert: Alert) -> list[Delivery]:
    """Send the alert to all channels now."""
    run_url = tasks.run_url()
    details = {**alert.details, **({"run_url": run_url} if run_url else {})}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"event": alert.event, "about": alert.about, "reason": alert.message, "at": at, **details}
    return channels.deliver(settings.alert_urls, text_of(alert, details), facts)


def text_of(alert: Alert, details: Mapping[str, Any]) -> Message:
    """The alert as a person reads it: the reason, what to do, and where to read on."""
    title = f"{alert.event.capitalize()}: {alert.about}"
    todo = "\n".join(f"- {recommendation}" for recommendation in details.get("recommendations", ()))
    links = [f"{name}: {details[key]}" for name, key in (("Run", "run_url"), ("Report", "report")) if key in details]
    paragraphs = [alert.message, f"What to do:\n{todo}" if todo else "", "\n".join(links)]
    return Message(title, "\n\n".join(filter(None, paragraphs)), KINDS.get(alert.event, "warning"))
