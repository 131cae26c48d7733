"""A command at the lowest priority: its threads, its session, and its process id, which is that of who started it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOOK = """
import os, pathlib, threading
found = []
thread = threading.Thread(target=lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
thread.start()
thread.join()
autogroup = pathlib.Path("/proc/self/autogroup")
weight = autogroup.read_text().split()[-1] if autogroup.exists() else "19"
print(os.getpid(), os.nice(0), *found, os.getsid(0) == os.getpid(), weight)
"""


@pytest.mark.parametrize("options", [{}, {"process_group": 0}, {"start_new_session": True}])
def test_the_process_becomes_the_command_in_a_session_of_its_own(options: dict[str, int]) -> None:
    command = [sys.executable, "-m", "flows.low_priority", sys.executable, "-c", LOOK]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options) as process:  # type: ignore[call-overload]
        printed, _ = process.communicate(timeout=60)
    assert printed.split() == [str(process.pid), "19", "19", "True", "19"]
