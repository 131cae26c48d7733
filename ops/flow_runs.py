"""Runs flows in the process of a command."""

import logging
import os
import time
from importlib import import_module
from typing import Any

from digits.settings import load_settings

log = logging.getLogger("digits.flow_runs")


def run_flow(name: str, *arguments: Any) -> Any:
    """Run the flow `flows.NAME.NAME` with Prefect's log lines off the terminal; its result. Logs how long it took.

    Raises ConnectionError when the Prefect server does not answer.
    """
    import httpx

    from ops import processes

    settings = load_settings()
    try:
        # As patient as Prefect's own client (PREFECT_API_REQUEST_TIMEOUT): a busy server may take long to answer.
        httpx.get(f"{settings.prefect_api_url}/health", timeout=60).raise_for_status()
    except httpx.HTTPError as error:
        raise ConnectionError(
            f"Prefect does not answer at {settings.prefect_api_url}; start it with `digits up` or set PREFECT_API_URL"
        ) from error
    os.environ.update(processes.environment(settings))
    from flows import terminal

    terminal.prepare(settings.prefect_api_url)
    started = time.monotonic()
    result = terminal.run(getattr(import_module(f"flows.{name}"), name), *arguments)
    log.info("took %.1f s", time.monotonic() - started)
    return result
