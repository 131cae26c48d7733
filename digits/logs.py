"""The log lines of the service, the flows and the commands, as text or as one JSON object a line; each names its HTTP request."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

# Of the HTTP request that is being answered; empty outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")
# Set by Prefect on the records of a run.
_RUN_FIELDS = ("flow_run_name", "task_run_name")


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message (request id)`, with the traceback of an exception below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    # logging's own name
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        id = request_id.get()
        return super().formatMessage(record) + (f" (request {id})" if id else "")


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and where there are such the request's id, its HTTP fields and the exception."""

    def __init__(self, *_: object, **__: object) -> None:
        # Configurations of other tools, Prefect's for example, pass a format.
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {"time": at, "level": record.levelname, "logger": record.name}
        entry["message"] = record.getMessage()
        if id := request_id.get():
            entry["request_id"] = id
        entry |= {name: getattr(record, name) for name in _RUN_FIELDS if getattr(record, name, None)}
        entry |= getattr(record, "http", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def formatter(log_format: LogFormat) -> logging.Formatter:
    """The formatter of a setting `DIGITS_LOG_FORMAT`."""
    return JsonFormatter() if log_format == "json" else TextFormatter()


def printable(text: str) -> str:
    """The text with what is not printable escaped: a path could contain the line of another request, or control a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def prefect_variables(log_format: LogFormat) -> dict[str, str]:
    """Environment variables that give Prefect's lines the same form (https://docs.prefect.io/v3/how-to-guides/workflows/add-logging)."""
    if log_format == "text":
        return {}
    console = {f"PREFECT_LOGGING_HANDLERS_{handler}_FORMATTER": "json" for handler in ("CONSOLE", "DEBUG")}
    return {
        **console,
        "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": f"{__name__}.{JsonFormatter.__name__}",
        "PREFECT_LOGGING_COLORS": "false",
    }
