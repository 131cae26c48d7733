"""Supervisor runs each server through this module: it ends orphaned workers of the previous one, then becomes the server.

When a server is killed, its workers go on listening on its port, so that its successor could not start.
"""

import os
import sys
from contextlib import suppress

import psutil

END_TIMEOUT_SECONDS = 5.0
# Environment variables that Supervisor sets for its processes.
NAME, SUPERVISOR = "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_SERVER_URL"


def main() -> None:
    """`python -m ops.launch SUPERVISOR_URL NAME COMMAND …`."""
    supervisor, name, *command = sys.argv[1:]
    end(find_processes(supervisor, name))
    os.execv(command[0], command)


def find_processes(supervisor: str, name: str | None = None) -> list[psutil.Process]:
    """The other processes that the Supervisor with this URL started, all or those of one server."""
    others = (process for process in psutil.process_iter(["environ"]) if process.pid != os.getpid())
    # The environment of another user's process is None.
    found = [(process, process.info["environ"] or {}) for process in others]
    return [p for p, environ in found if environ.get(SUPERVISOR) == supervisor and name in (None, environ.get(NAME))]


def end(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that still run after `END_TIMEOUT_SECONDS`."""
    for method in ("terminate", "kill"):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                getattr(process, method)()
        _, processes = psutil.wait_procs(processes, timeout=END_TIMEOUT_SECONDS)


if __name__ == "__main__":
    main()
