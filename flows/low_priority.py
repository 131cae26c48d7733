"""Runs a command at the lowest priority: `python -m flows.low_priority COMMAND …`.

Where Linux groups processes by session (autogroup in `man 7 sched`), a nice value counts only within a session; so the command gets a
session of its own, which itself is nice. Its threads inherit both.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

LOWEST = 19


def lower() -> None:
    """Give this process the lowest priority, and its session too where it begins one."""
    os.nice(LOWEST)
    with suppress(PermissionError):
        # The leader of a process group cannot begin a session.
        os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
    autogroup = Path("/proc/self/autogroup")
    if os.getsid(0) == os.getpid() and autogroup.exists():
        with suppress(OSError):
            autogroup.write_text(str(LOWEST))


if __name__ == "__main__":
    lower()
    os.execv(sys.argv[1], sys.argv[1:])
