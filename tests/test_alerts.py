"""Alerts reach every channel once, come again after the cooldown, tell no secret, and never break who raises them."""

import email
import email.policy
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import find_free_port
from prefect.settings import PREFECT_UI_URL, temporary_settings
from typer.testing import CliRunner

from digits.settings import Settings
from flows import alerts, channels
from flows.alerts import Alert
from flows.channels import Message
from ops.cli import app

ROOT = Path(__file__).parent.parent
LOOK = "Look at the client that makes the pictures."
DETAILS = {"severity": "strong", "explanations": ["shift"], "recommendations": [LOOK], "report": "var/reports/a.html"}
DRIFT = Alert("drift", "digits v3: shift", "Shifted 2.0 px right.", DETAILS)


def send(urls: list[str], database_url: str, alert: Alert = DRIFT, hours: float = 24) -> bool:
    settings = Settings(_env_file=None, alert_urls=urls, database_url=database_url, alert_cooldown_hours=hours)  # type: ignore[call-arg]
    return alerts.send(settings, alert)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Pytest also listens to Apprise's logger, which shows its lines nowhere."""
    assert not logging.getLogger("apprise").propagate
    return [record.getMessage() for record in caplog.records if record.name != "apprise"]


class Webhook:
    """A real one, which keeps what it is sent."""

    def __init__(self) -> None:
        self.status, self.received = 200, list[Any]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.received.append((self.headers, body.decode()))
                self.send_response(webhook.status)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                """Quiet."""

        webhook = self
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"json://{self.host}/alerts"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.received]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    yield webhook
    webhook.server.shutdown()
    webhook.server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"json://127.0.0.1:{server.getsockname()[1]}/?rto=30"


def test_a_json_webhook_gets_the_text_for_people_and_the_facts_for_programs(
    webhook: Webhook, database_url: str
) -> None:
    assert send([f"{webhook.url}?:team=vision"], database_url)
    ((headers, _),), (body,) = webhook.received, webhook.bodies
    assert headers["Content-Type"] == "application/json"
    assert (body["title"], body["type"]) == ("Drift: digits v3: shift", "warning")
    assert (body["event"], body["about"], body["reason"]) == ("drift", "digits v3: shift", "Shifted 2.0 px right.")
    assert DETAILS.items() <= body.items()
    assert body["at"].endswith("+00:00") and body["team"] == "vision"
    assert body["message"] == f"{DRIFT.message}\n\nWhat to do:\n- {LOOK}\n\nReport: var/reports/a.html"


def test_a_phone_gets_the_same_text(webhook: Webhook, database_url: str) -> None:
    """ntfy has its own form of a message."""
    assert send([f"ntfy://{webhook.host}/digits"], database_url)
    (body,) = webhook.bodies
    assert (body["topic"], body["title"]) == ("digits", "Drift: digits v3: shift")
    assert LOOK in body["message"] and "var/reports/a.html" in body["message"]


def test_the_same_alert_is_sent_once_until_the_cooldown_is_over(webhook: Webhook, database_url: str) -> None:
    other = Alert("drift", "digits v3: blur", "Blurred.")
    sent = [send([webhook.url], database_url, alert) for alert in (DRIFT, DRIFT, other, other)]
    assert sent == [True, False, True, False]
    assert send([webhook.url], database_url, hours=0)
    assert [body["about"] for body in webhook.bodies] == [DRIFT.about, other.about, DRIFT.about]


def test_what_did_not_arrive_is_sent_again(
    webhook: Webhook, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    webhook.status = 503
    assert not send([webhook.url], database_url)
    assert "503" in logged(caplog)[0] and DRIFT.message in logged(caplog)[0]
    assert not send([f"json://127.0.0.1:{find_free_port()}"], database_url)
    assert not send(["telegraph://wire"], database_url)
    webhook.status = 204
    assert send([webhook.url], database_url)


def test_a_dead_channel_does_not_stop_another(
    webhook: Webhook, silent: str, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT_SECONDS", 1.0)
    refusing = f"json://127.0.0.1:{find_free_port()}"
    started = time.monotonic()
    assert send([refusing, silent, webhook.url, "no://address"], database_url)
    assert time.monotonic() - started < 5
    assert len(webhook.received) == 1
    lines = logged(caplog)
    assert [line.partition(" did not reach ")[2].split(":")[0] for line in lines] == [
        "channel 1 (JSON)",
        "channel 2 (JSON)",
        "channel 4",
    ]
    assert "within 1 s" in lines[1] and "jsons://host/path" in lines[2]


@pytest.mark.parametrize(
    "address",
    [
        "json://ann:hush-hush@{host}/hush-path/?+Authorization=hush-header",
        "mattermost://{host}/hushhushhush1234?format=text",
        "ntfy://ann:hush-hush@{host}/hush-topic",
        "matrix://ann:hush-hush@{host}/#hush-room",
        "slack://hush/hush/hush",
        "hushed://hush",
    ],
)
def test_no_part_of_an_address_is_logged(
    webhook: Webhook,
    database_url: str,
    address: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    webhook.status = 401
    for host in (webhook.host, f"127.0.0.1:{find_free_port()}"):
        assert not send([address.format(host=host)], database_url)
    output = capfd.readouterr()
    assert "did not reach channel 1" in logged(caplog)[0]
    assert "hush" not in str(logged(caplog)) + output.out + output.err


def test_without_a_channel_nothing_is_sent_or_noted(webhook: Webhook, database_url: str) -> None:
    assert not send([], database_url)
    assert send([webhook.url], database_url)


def test_while_the_database_is_away_the_alert_goes_out(webhook: Webhook) -> None:
    """It may be the very thing that somebody should know."""
    away = f"postgresql+psycopg://digits@127.0.0.1:{find_free_port()}/digits"
    assert send([webhook.url], away)
    assert len(webhook.received) == 1


def test_a_mail_says_all_in_its_own_form() -> None:
    """A real SMTP conversation, without a library for it."""
    received, url = list[str](), "http://127.0.0.1:4200/runs/1"
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_receive_mail, args=(server, received), daemon=True)
        thread.start()
        place = f"127.0.0.1:{server.getsockname()[1]}"
        address = f"mailto://{place}/?from=digits@example.org&to=ann@example.org&mode=insecure"
        message = Message("Drift: digits v3", f"Shifted 2 px.\n\n- Look <here>.\nRun: {url}")
        (delivery,) = channels.deliver([address], message, {})
        thread.join(10)
    assert delivery.problem is None
    mail = email.message_from_string(received[0], policy=email.policy.default)
    assert (mail["Subject"], mail["From"]) == ("Drift: digits v3", "digits@example.org")
    plain, html = (part.get_content().strip() for part in mail.iter_parts())
    assert plain.split() == f"Shifted 2 px. - Look <here>. Run: {url}".split()
    assert html == f'<p>Shifted 2 px.</p><p>- Look &lt;here&gt;.<br/>Run: <a href="{url}">{url}</a></p>'


def _receive_mail(server: socket.socket, received: list[str]) -> None:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as lines:
        connection.sendall(b"220 ready\r\n")
        for line in lines:
            if line.upper().startswith(b"DATA"):
                connection.sendall(b"354 go on\r\n")
                received.append(b"".join(iter(lines.readline, b".\r\n")).decode())
            connection.sendall(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 fine\r\n")


def test_the_command_tests_every_channel_and_fails_if_one_does(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIGITS_ALERT_URLS", json.dumps([webhook.url]))
    tried = CliRunner().invoke(app, ["alert", "test"])
    assert (tried.exit_code, tried.output) == (0, "channel 1 (JSON) accepted the test alert\n")
    assert webhook.bodies[0]["event"] == "test" and webhook.bodies[0]["type"] == "info"
    monkeypatch.setenv("DIGITS_ALERT_URLS", json.dumps(["slack://T1JJ3T3L2", webhook.url]))
    tried = CliRunner().invoke(app, ["alert", "test"])
    assert tried.exit_code == 1 and len(webhook.received) == 2
    first, second = tried.output.splitlines()
    assert (
        first.startswith("channel 1 failed: it is no address") and second == "channel 2 (JSON) accepted the test alert"
    )
    # the cooldown does not apply, and none begins
    assert CliRunner().invoke(app, ["alert", "test"]).exit_code == 1 and len(webhook.received) == 3


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "DIGITS_ALERT_URLS names no channel"),
        ("slack://hush/hush", "DIGITS_ALERT_URLS: expected JSON, got another text"),
        ('{"a": "hush"}', "alert_urls"),
        ('["hush"]', "expected an address of Apprise"),
        ('[["hush"]]', "alert_urls"),
    ],
)
def test_a_wrong_setting_is_explained_and_not_quoted(tmp_path: Path, value: str, problem: str) -> None:
    environment = {**os.environ, "DIGITS_ALERT_URLS": value, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ops", "alert", "test"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and problem.lower() in done.stderr.lower(), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hush" not in done.stderr + done.stdout
    assert "hush" not in repr(Settings(_env_file=None, alert_urls=["json://hush"]))  # type: ignore[call-arg]


def test_an_alert_of_a_flow_run_links_to_its_page(
    webhook: Webhook, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0984f872-f014-4307-bea0-2a041e8e3f5b")
    with temporary_settings({PREFECT_UI_URL: "http://127.0.0.1:4200"}):
        assert send([webhook.url], database_url)
    (body,) = webhook.bodies
    assert body["run_url"] == "http://127.0.0.1:4200/runs/flow-run/0984f872-f014-4307-bea0-2a041e8e3f5b"
    assert f"Run: {body['run_url']}\n" in body["message"]
