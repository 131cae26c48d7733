"""The channels that alerts go to: Apprise addresses of chats, mail, phones and webhooks (https://appriseit.com/services/)."""

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:  # 0.2 s to import, and 0.4 s for the first address
    from apprise import NotifyBase

TIMEOUT_SECONDS = 20.0
UNKNOWN = "it is no address that Apprise knows; one of your own webhooks is jsons://host/path"


@dataclass(frozen=True)
class Message:
    """What a person reads, and the kind of it, which some channels show as a colour or an icon."""

    title: str
    body: str
    kind: str = "warning"  # of Apprise: "info", "success", "warning" or "failure"


@dataclass(frozen=True)
class Delivery:
    """What became of a message in one channel; nothing here shows a part of its address, which may be a secret."""

    channel: str
    problem: str | None = None  # one clause


def deliver(addresses: Sequence[str], message: Message, facts: Mapping[str, Any]) -> list[Delivery]:
    """Send a message to all channels at once, and to JSON webhooks its facts as well, as further fields of the object (JSON values).

    A channel that needs longer than `TIMEOUT_SECONDS` is not waited for, and none keeps another from being tried.
    """
    with _Warnings() as warnings:
        sendings = [_Sending(address, message, facts, warnings) for address in addresses]
        for sending in sendings:
            sending.start()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for sending in sendings:
            sending.join(max(0.0, deadline - time.monotonic()))
    return [sending.delivery(number) for number, sending in enumerate(sendings, 1)]


class _Warnings(logging.Handler):
    """Collects Apprise's warnings by thread; they say why a delivery failed, and are shown nowhere else: they may hold the address."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.of_thread: dict[int | None, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.of_thread.setdefault(record.thread, []).append(record.getMessage())

    def __enter__(self) -> "_Warnings":
        logger = logging.getLogger("apprise")
        logger.propagate = False
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        # `propagate` stays off: a delivery that takes longer than it is waited for still warns.
        logging.getLogger("apprise").removeHandler(self)


class _Sending(threading.Thread):
    """One delivery, in a thread of its own that does not keep the process from ending."""

    def __init__(self, address: str, message: Message, facts: Mapping[str, Any], warnings: _Warnings) -> None:
        super().__init__(name="alert", daemon=True)
        self._address, self._message, self._warnings = address, message, warnings
        self._channel, self._is_delivered = _channel(address, facts), False

    def run(self) -> None:
        from apprise import Apprise, NotifyFormat

        if self._channel is not None:
            message, sender = self._message, Apprise()
            sender.add(self._channel)
            is_html = self._channel.notify_format == NotifyFormat.HTML
            form, body = (NotifyFormat.HTML, _html(message.body)) if is_html else (NotifyFormat.TEXT, message.body)
            self._is_delivered = bool(sender.notify(body, message.title, message.kind, body_format=form))

    def delivery(self, number: int) -> Delivery:
        if self._channel is None:
            return Delivery(f"channel {number}", UNKNOWN)
        channel = f"channel {number} ({self._channel.service_name})"
        if self.is_alive():
            return Delivery(channel, f"it did not accept the message within {TIMEOUT_SECONDS:g} s")
        return Delivery(channel, None if self._is_delivered else self._reason())

    def _reason(self) -> str:
        said = "; ".join(self._warnings.of_thread.get(self.ident, [])) or "it did not accept the message"
        return " ".join(_without(said, self._address).split()).rstrip(".")


def _channel(address: str, facts: Mapping[str, Any]) -> "NotifyBase | None":
    """What Apprise makes of an address; None for an unknown one."""
    from apprise import Apprise, AppriseAsset
    from apprise.plugins.custom_json import NotifyJSON

    asset = AppriseAsset(app_id="digits", app_desc="digits", app_url="", storage_mode="memory")
    channel = Apprise.instantiate(address, asset=asset, suppress_exceptions=True)
    if isinstance(channel, NotifyJSON):
        # The address's own fields, `?:team=vision` for example, have precedence.
        channel.payload_extras = {**facts, **channel.payload_extras}
    return channel


def _html(body: str) -> str:
    """The paragraphs of a text; Apprise would make all spaces unbreakable, so that lines in a mail would not wrap."""
    paragraphs = "".join(f"<p>{paragraph}</p>" for paragraph in escape(body).split("\n\n")).replace("\n", "<br/>")
    return re.sub(r"https?://[^\s<]+", r'<a href="\g<0>">\g<0></a>', paragraphs)


def _without(text: str, address: str) -> str:
    """The text without what may be a secret of the address: host, path, user, password and the values of its options."""
    rest = address.partition("://")[2]
    for separator in "/:@?&=+#,":
        rest = rest.replace(separator, " ")
    parts = {part for spelled in (rest, unquote(rest)) for part in spelled.split() if len(part) > 2}
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "***")
    return text
