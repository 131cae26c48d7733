"""`python -m services`: its port is its own, its files are for its user only, and it reuses the memory of bodies."""

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Service

ROOT = Path(__file__).parent.parent
needs_mallopt = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
# Prints the page faults of ten bodies of 4 MB, after five others; memory from the kernel causes one for each page of 4 kB.
PAGE_FAULTS = """
import resource

from services.__main__ import set_malloc_options

def receive(bodies):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(bodies):
        b"".join([bytes(65_536) for _ in range(60)])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

set_malloc_options()
receive(5)
print(receive(10))
"""
MALLINFO = """
import ctypes, sys
from services.__main__ import set_malloc_options

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks".split()] + [("rest", ctypes.c_size_t * 4)]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo2
if sys.argv[1] == "set":
    set_malloc_options()
bytearray(16_000_000)
block = bytearray(16_000_000)
# of the blocks that go back to the system when they are freed, the bytes
print(libc.mallinfo2().hblkhd)
"""


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**os.environ, "DIGITS_HOME": str(tmp_path), "DIGITS_SERVICE_PORT": str(port)}
        command = [sys.executable, "-m", "services"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    said = f"digits: cannot listen on 127.0.0.1:{port} (Address already in use); "
    assert (done.returncode, done.stderr) == (1, f"{said}stop what listens there or set DIGITS_SERVICE_PORT\n")


def test_its_files_are_for_its_user_only(service: Service) -> None:
    service.wait_for(lambda: service.status("/readyz") == 200)
    written = [path for path in (service.home / "metrics").rglob("*") if path.is_file()]
    assert written and {path.stat().st_mode & 0o077 for path in written} == {0}


@needs_mallopt
def test_the_memory_of_a_body_is_reused() -> None:
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 1_000, done.stderr


@needs_mallopt
def test_large_blocks_that_are_freed_go_back_to_the_system() -> None:
    def mapped(how: str) -> int:
        command = [sys.executable, "-c", MALLINFO, how]
        return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    assert mapped("default") < 16_000_000 < mapped("set")
