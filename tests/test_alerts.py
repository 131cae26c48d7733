"""Alerts reach a webhook once, come again after the cooldown, and never break who raises them."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from conftest import find_free_port

from digits.settings import Settings
from flows import alerts
from flows.alerts import Alert

DRIFT = Alert("drift", "digits v3: shift", "Shifted 2.0 px right.", {"severity": "strong"})


def send(url: str | None, database_url: str, alert: Alert = DRIFT, hours: float = 24) -> bool:
    settings = Settings(_env_file=None, alert_url=url, database_url=database_url, alert_cooldown_hours=hours)  # type: ignore[call-arg]
    return alerts.send(settings, alert)


class Webhook:
    """A real one, which keeps what it is sent."""

    def __init__(self) -> None:
        self.status, self.received = 200, list[Any]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.received.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(webhook.status)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                """Quiet."""

        webhook = self
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    yield webhook
    webhook.server.shutdown()
    webhook.server.server_close()


def test_an_alert_arrives_as_json_with_its_details(webhook: Webhook, database_url: str) -> None:
    assert send(webhook.url, database_url)
    ((kind, body),) = webhook.received
    assert kind == "application/json"
    assert (body["event"], body["message"], body["severity"]) == ("drift", "Shifted 2.0 px right.", "strong")
    assert body["at"].endswith("+00:00")


def test_the_same_alert_is_sent_once_until_the_cooldown_is_over(webhook: Webhook, database_url: str) -> None:
    other = Alert("drift", "digits v3: blur", "Blurred.")
    sent = [send(webhook.url, database_url, alert) for alert in (DRIFT, DRIFT, other, other)]
    assert sent == [True, False, True, False]
    assert send(webhook.url, database_url, hours=0)
    assert len(webhook.received) == 3


def test_what_did_not_arrive_is_sent_again(
    webhook: Webhook, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    webhook.status = 503
    assert not send(webhook.url, database_url)
    assert "503" in caplog.text and DRIFT.message in caplog.text
    assert not send(f"http://127.0.0.1:{find_free_port()}", database_url)
    assert not send("no address", database_url)
    webhook.status = 204
    assert send(webhook.url, database_url)


def test_without_a_webhook_nothing_is_sent_or_noted(webhook: Webhook, database_url: str) -> None:
    assert not send(None, database_url)
    assert send(webhook.url, database_url)


def test_while_the_database_is_away_the_alert_goes_out(webhook: Webhook) -> None:
    """It may be the very thing that somebody should know."""
    away = f"postgresql+psycopg://digits@127.0.0.1:{find_free_port()}/digits"
    assert send(webhook.url, away)
    assert len(webhook.received) == 1
