"""Sets Prefect up for the flows that a command runs in its own process."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from digits.settings import Settings, load_settings
from ops import processes

# As patient as Prefect's own client (PREFECT_API_REQUEST_TIMEOUT): a busy server may take long to answer.
HEALTH_TIMEOUT = httpx.Timeout(60, connect=10)

log = logging.getLogger("digits.flow_runs")


@contextmanager
def flows_in_this_process() -> Iterator[Callable[..., Any]]:
    """Point Prefect at its server and keep its log lines off the terminal; yields what runs a flow, and logs how long the body took.

    Raises ConnectionError when the Prefect server does not answer.
    """
    settings = load_settings()
    _check_prefect(settings)
    os.environ.update(processes.environment(settings))
    from flows import terminal

    terminal.prepare()
    started = time.monotonic()
    yield terminal.run
    log.info("took %.1f s", time.monotonic() - started)


def silence_prefect() -> None:
    """Keep Prefect's log lines off the terminal; they still go to its server."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"


def _check_prefect(settings: Settings) -> None:
    try:
        httpx.get(f"{settings.prefect_api_url}/health", timeout=HEALTH_TIMEOUT).raise_for_status()
    except httpx.HTTPError as error:
        raise ConnectionError(
            f"Prefect does not answer at {settings.prefect_api_url}; start it with `digits up` or set PREFECT_API_URL"
        ) from error
