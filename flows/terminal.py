"""Flows that a command runs in its own process: Prefect prints nothing, and its outage costs no result."""

import logging
import os
import sys
from concurrent.futures import Future
from contextlib import ExitStack
from copy import copy
from functools import wraps
from threading import Event
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import httpx

if TYPE_CHECKING:  # only after `prepare` has set Prefect's environment
    from prefect import Flow

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("digits.flows")

ENVIRONMENT = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    # For 6 s. With Prefect's own 5, each call to a server that stopped waits for a minute.
    "PREFECT_CLIENT_MAX_RETRIES": "2",
}

outage = Event()


def prepare() -> None:
    """Keep what Prefect prints off the terminal; to be called before Prefect is imported."""
    os.environ |= ENVIRONMENT
    # Otherwise Prefect's log handler writes "Error logging to API" to standard error.
    logging.raiseExceptions = False
    logging.getLogger("prefect.events.clients").addFilter(_report_outage)


def _report_outage(record: logging.LogRecord | None = None) -> bool:
    """Say in one sentence what Prefect's event client warns of once per event; its records are shown nowhere."""
    if not outage.is_set() and (record is None or record.levelno >= logging.WARNING):
        from prefect.settings import PREFECT_API_URL

        outage.set()
        message = "Prefect at %s stopped answering; the run goes on, and only its page in Prefect ends here"
        log.warning(message, PREFECT_API_URL.value())
    return False


def run(flow: "Flow[P, R]", *args: P.args, **kwargs: P.kwargs) -> R:
    """The result or error of the flow, also where Prefect stopped answering and cannot record how it ended."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    outcome: Future[R] = Future()
    api = PREFECT_API_URL.value()

    @wraps(flow.fn)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            outcome.set_result(flow.fn(*args, **kwargs))
        except Exception as error:
            outcome.set_exception(error)
        if not is_up(api):
            _report_outage()
            # Prefect would try several times to record the end.
            settings.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        return outcome.result()

    observed = copy(flow)
    observed.fn = function
    with ExitStack() as settings:
        try:
            return observed(*args, **kwargs)
        except httpx.HTTPError:
            if not outcome.done():
                raise ConnectionError(f"Prefect at {api} does not answer; the flow did not begin") from None
    _report_outage()
    return outcome.result()


def exit_without_prefect() -> None:
    """End the process at once during an outage, with the code of the current SystemExit.

    At an ordinary exit, Prefect's client would try for a minute or more to send the remaining events.
    """
    if outage.is_set():
        error = sys.exc_info()[1]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 0)


def is_up(api: str) -> bool:
    """Whether the Prefect server answers."""
    try:
        return httpx.get(f"{api}/health", timeout=10).is_success
    except httpx.HTTPError:
        return False
