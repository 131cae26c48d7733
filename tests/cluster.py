"""A real Dask cluster on this machine, of a scheduler and workers that can be killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from conftest import find_free_port

ROOT = Path(__file__).parent.parent
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass
class Cluster:
    """Its address, and the nannies that start a worker anew when it dies."""

    address: str
    nannies: "list[subprocess.Popen[bytes]]"

    def workers(self) -> list[psutil.Process]:
        """The processes that work."""
        children = [child for nanny in self.nannies for child in psutil.Process(nanny.pid).children()]
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@contextmanager
def running(workers: int = 2) -> Iterator[Cluster]:
    """A scheduler and so many workers of one thread, as `dask scheduler` and `dask worker` start them."""
    port = find_free_port()
    address = f"tcp://127.0.0.1:{port}"
    host = ["--host", "127.0.0.1", "--no-dashboard"]
    with ExitStack() as stack:

        def start(*words: str) -> "subprocess.Popen[bytes]":
            process = subprocess.Popen([sys.executable, "-m", "dask", *words, *host], cwd=ROOT, **QUIET)
            stack.callback(_end, process)
            return process

        start("scheduler", "--port", str(port))
        yield Cluster(address, [start("worker", address, "--nthreads", "1") for _ in range(workers)])


def _end(process: "subprocess.Popen[bytes]") -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(60)
    for child in children:
        if child.is_running():
            child.kill()
