"""Runs flows in the process of a command."""

import os
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from digits import files
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
    _refuse_foreign_files()
    os.environ.update(process_environment.of_clients(settings))
    # Prefect warns of a home whose parent is missing.
    settings.home.mkdir(parents=True, exist_ok=True)
    terminal.prepare()


def _refuse_foreign_files() -> None:
    """Raises PermissionError for settings in the working directory that Prefect would read, of another user than root: they can name code to run."""
    for path in (Path("prefect.toml"), Path("pyproject.toml")):
        if (owner := files.foreign_owner(path, trusts_root=True)) and (
            path.name == "prefect.toml" or _is_for_prefect(path)
        ):
            raise PermissionError(
                f"{path.absolute()} belongs to {owner}, and Prefect would read its settings; work in another folder"
            )


def _is_for_prefect(path: Path) -> bool:
    return "prefect" in tomllib.loads(path.read_text()).get("tool", {})
