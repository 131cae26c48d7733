"""Supervisor runs each server through this module: it ends orphaned workers of the previous one, then becomes the server.

When a server is killed, its workers go on listening on its port, so that its successor could not start.
"""

import os
import sys
import time
from contextlib import suppress

import psutil

# Environment variables that Supervisor sets for its processes.
NAME, SUPERVISOR = "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_SERVER_URL"


def end(supervisor: str, name: str | None = None, timeout_seconds: float = 5) -> bool:
    """Terminate the processes of the Supervisor with this URL, all or those of one name; whether there were any.

    Those that still run after `timeout_seconds` are killed.
    """
    found = first = _find(supervisor, name)
    for method in ("terminate", "kill"):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                getattr(process, method)()
        deadline = time.monotonic() + timeout_seconds
        # Not psutil.wait_procs, which takes a zombie for a running process.
        while (found := _find(supervisor, name)) and time.monotonic() < deadline:
            time.sleep(0.1)
    return bool(first)


def _find(supervisor: str, name: str | None) -> list[psutil.Process]:
    others = (process for process in psutil.process_iter(["environ"]) if process.pid != os.getpid())
    # The environment of another user's process is None, that of a zombie empty.
    found = [(process, process.info["environ"] or {}) for process in others]
    return [p for p, environ in found if environ.get(SUPERVISOR) == supervisor and name in (None, environ.get(NAME))]


if __name__ == "__main__":
    end(os.environ[SUPERVISOR], os.environ[NAME])
    os.execv(sys.argv[1], sys.argv[1:])
