"""Runs flows in the process of a command."""

import os
from importlib import import_module
from typing import Any

from digits.settings import load_settings


def run_flow(name: str, *arguments: Any) -> Any:
    """Run the flow `flows.NAME.NAME` with Prefect's log lines off the terminal; returns its result.

    Raises ConnectionError when the Prefect server does not answer.
    """
    from ops import processes

    api = load_settings().prefect_api_url
    # As patient as Prefect's own client (PREFECT_API_REQUEST_TIMEOUT): a busy server may take long to answer.
    if not processes.get(f"{api}/health", timeout_seconds=60).is_success:
        raise ConnectionError(f"Prefect does not answer at {api}; start it with `digits up` or set PREFECT_API_URL")
    prepare()
    from flows import terminal

    return terminal.run(getattr(import_module(f"flows.{name}"), name), *arguments)


def prepare() -> None:
    """Set Prefect's environment, with its log lines off the terminal; must be called before anything imports Prefect."""
    from flows import terminal
    from ops import process_environment

    settings = load_settings()
    os.environ.update(process_environment.of_clients(settings))
    # Prefect warns of a home whose parent is missing.
    settings.home.mkdir(parents=True, exist_ok=True)
    terminal.prepare()
