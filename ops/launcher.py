"""Starts a server: ends the processes that an earlier one left behind, then becomes it: `python -m ops.launcher URL NAME COMMAND …`.

A module of its own, because each start of a server waits for its imports: 0.1 s of processor time, those of `ops.processes` 0.9 s.
"""

import os
import sys
import time
from contextlib import suppress

import psutil


def end_processes(variables: dict[str, str], timeout_seconds: float = 5) -> bool:
    """Terminate the processes with these environment variables, and kill those that do not end; returns whether there were any."""
    found = first = _find_processes(variables)
    for method in ("terminate", "kill"):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                getattr(process, method)()
        deadline = time.monotonic() + timeout_seconds
        # Not psutil.wait_procs, which takes a zombie for a running process.
        while (found := _find_processes(variables)) and time.monotonic() < deadline:
            time.sleep(0.1)
    return bool(first)


def _find_processes(variables: dict[str, str]) -> list[psutil.Process]:
    others = (process for process in psutil.process_iter(["environ"]) if process.pid != os.getpid())
    # The environment of another user's process is None, that of a zombie empty.
    return [process for process in others if variables.items() <= (process.info["environ"] or {}).items()]


if __name__ == "__main__":
    url, name, *command = sys.argv[1:]
    end_processes({"SUPERVISOR_SERVER_URL": url, "SUPERVISOR_PROCESS_NAME": name})
    # The passwords in it are for the flows, which send the alerts.
    os.environ["DIGITS_ALERT_URLS"] = "[]"
    os.execv(command[0], command)
