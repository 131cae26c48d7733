"""Flows that a command runs in its own process: Prefect prints nothing, and its outage costs no result."""

import logging
import os
import sys
from concurrent.futures import Future
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
    "PREFECT_CLIENT_MAX_RETRIES": "2",  # for 6 s; with Prefect's own 5 a command waits minutes for a server that is gone
}


class Outage(logging.Handler):
    """Replaces the warnings of Prefect's event client, one per event, by one sentence."""

    api = ""
    told = False

    def emit(self, _record: logging.LogRecord) -> None:
        self.tell()

    def tell(self) -> None:
        """Log the sentence, once."""
        if not self.told:
            self.told = True
            log.warning(
                "Prefect at %s stopped answering; the run goes on and its results are kept, but Prefect will not show its end",
                self.api,
            )


outage = Outage(logging.WARNING)


def prepare(api: str) -> None:
    """Keep what Prefect prints off the terminal, its address being `api`; to be called before Prefect is imported."""
    os.environ.update(ENVIRONMENT)
    logging.raiseExceptions = False  # else Prefect's log handler writes "Error logging to API" to stderr
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker

    # The client's own 10 attempts take 8 s for each event of a server that is gone, also while the command ends.
    EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=2)
    outage.api = api


def run(flow: "Flow[P, R]", *args: P.args, **kwargs: P.kwargs) -> R:
    """The result or error of the flow, also where Prefect stopped answering and cannot record how it ended."""
    outcome: Future[R] = Future()

    @wraps(flow.fn)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        # Here, because Prefect removes the handlers of its loggers when it starts a flow.
        logging.getLogger("prefect.events.clients").addHandler(outage)
        try:
            outcome.set_result(flow.fn(*args, **kwargs))
        except Exception as error:
            outcome.set_exception(error)
        return outcome.result()

    observed = copy(flow)
    observed.fn = function
    try:
        return observed(*args, **kwargs)
    except httpx.HTTPError as error:
        if not outcome.done():
            raise ConnectionError(
                f"Prefect does not answer, and the flow {flow.name} did not begin: {error}"
            ) from error
    outage.tell()
    return outcome.result()


def exit_without_prefect() -> None:
    """End the process at once during an outage, with the code of the current SystemExit.

    At an ordinary exit, Prefect's client would try for half a minute to send the events that are left.
    """
    if outage.told:
        error = sys.exc_info()[1]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 0)
