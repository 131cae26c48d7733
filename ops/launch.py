"""What Supervisor runs for each server: ends what an earlier one left behind, then becomes the server.

A server that is killed leaves its own workers, which go on listening: the next one would find its port taken, again and again.
"""

import os
import sys
from contextlib import suppress

import psutil

PATIENCE_SECONDS = 5.0
NAME, PLATFORM = "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_SERVER_URL"  # which Supervisor tells all it starts


def main() -> None:
    """`python -m ops.launch COMMAND …`, below Supervisor."""
    mine = psutil.Process().environ()
    end(left_behind(mine[PLATFORM], mine[NAME]))
    os.execv(sys.argv[1], sys.argv[1:])


def left_behind(platform: str, name: str | None = None) -> list[psutil.Process]:
    """The other processes of a platform, named by its Supervisor's address: those of one server, or all."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ() if process.pid != os.getpid() else {}
        except psutil.Error:  # of another user, or gone
            continue
        if environment.get(PLATFORM) == platform and environment.get(NAME) and name in (None, environment[NAME]):
            found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Ask them to end, and kill those that do not."""
    for method in ("terminate", "kill"):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                getattr(process, method)()
        _, processes = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)


if __name__ == "__main__":
    main()
