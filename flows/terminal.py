"""Flows that a command runs in its own process: Prefect prints nothing, and its outage costs no result."""

import logging
import os
import sys
from concurrent.futures import Future
from contextlib import ExitStack
from copy import copy
from functools import wraps
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


class Outage(logging.Handler):
    """One sentence in place of the warnings of Prefect's event client, which come once per event."""

    api = ""
    known = False

    def emit(self, _record: logging.LogRecord) -> None:
        self.report()

    def report(self) -> None:
        if not self.known:
            self.known = True
            log.warning(
                "Prefect at %s stopped answering; the run goes on, and only its page in Prefect ends here", self.api
            )


outage = Outage(logging.WARNING)


def prepare(api: str) -> None:
    """Keep what Prefect prints off the terminal, its address being `api`; to be called before Prefect is imported."""
    os.environ |= ENVIRONMENT
    # Otherwise Prefect's log handler writes "Error logging to API" to standard error.
    logging.raiseExceptions = False
    outage.api = api


def run(flow: "Flow[P, R]", *args: P.args, **kwargs: P.kwargs) -> R:
    """The result or error of the flow, also where Prefect stopped answering and cannot record how it ended."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    outcome: Future[R] = Future()
    settings = ExitStack()

    @wraps(flow.fn)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        # Here, because Prefect removes the handlers of its loggers when it starts a flow.
        logging.getLogger("prefect.events.clients").addHandler(outage)
        try:
            outcome.set_result(flow.fn(*args, **kwargs))
        except Exception as error:
            outcome.set_exception(error)
        if not is_up(outage.api):
            outage.report()
            # Prefect would try several times to record the end.
            settings.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        return outcome.result()

    observed = copy(flow)
    observed.fn = function
    with settings:
        try:
            return observed(*args, **kwargs)
        except httpx.HTTPError:
            if not outcome.done():
                raise ConnectionError(f"Prefect at {outage.api} does not answer; the flow did not begin") from None
    outage.report()
    return outcome.result()


def exit_without_prefect() -> None:
    """End the process at once during an outage, with the code of the current SystemExit.

    At an ordinary exit, Prefect's client would try for a minute or more to send the remaining events.
    """
    if outage.known:
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
