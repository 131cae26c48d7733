"""The platform under load while its parts are killed, its database is locked and its disk is full, one after another.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.faults

For each fault: requests sent and failed, answers with an id, those of them not found by their id afterwards, seconds from the
kill (or from the end of a lock, of a full disk) until every process is healthy and no answer waits. The disk is a small tmpfs under
DIGITS_HOME, which only root can mount on Linux; elsewhere that fault is named as skipped. Ends with 1 when an answer is lost, a
request failed that was not in flight inside a killed process, or recovery takes longer than 10 s.
"""

import errno
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from bench import harness
from digits.images import Images
from digits.settings import Settings
from models.recipes import COMPACT
from ops import processes

CLIENTS = 4
RATE = 60.0  # requests per second of all clients together
FAULT_SECONDS = 10.0  # how long the database is locked and the disk is full
CALM_SECONDS = 3.0  # of load before and after
PATIENCE_SECONDS = 120.0
LONGEST_SECONDS = 10.0  # of recovery
HOME_BYTES = 1_000_000_000


@dataclass
class Load:
    """Clients that send single images at a steady rate from its beginning to its end, and note every answer."""

    url: str
    images: Images
    sent: int = 0
    ids: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    def __enter__(self) -> "Load":
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        bodies = [{"images": image.tolist()} for image in self.images[number::CLIENTS]]
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._ended.wait(CLIENTS / RATE):
                started = time.monotonic()
                self.sent += 1
                try:
                    response = client.post("/classify", json=bodies[self.sent % len(bodies)])
                    self.ids.append(response.raise_for_status().json()["id"])
                except (httpx.HTTPError, KeyError) as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)

    def lost(self) -> list[str]:
        """Ids under which the service does not find its answer; None is an answer that it said it could not log."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            return [
                str(id)
                for id in self.ids
                if id is None or client.get(f"/predictions/{id}").status_code != httpx.codes.OK
            ]


@dataclass(frozen=True)
class Outcome:
    """What one fault did."""

    fault: str
    load: Load
    lost: int
    seconds: float
    allowed: (
        int | None
    )  # requests that may have been in flight inside what was killed; None when nobody was left to answer

    @property
    def is_fine(self) -> bool:
        few = self.allowed is None or len(self.load.failed) <= self.allowed
        return few and not self.lost and self.seconds < LONGEST_SECONDS

    def __str__(self) -> str:
        load = self.load
        return (
            f"{self.fault:20} {load.sent:6} sent, {len(load.failed):3} failed "
            f"(in flight: {'all' if self.allowed is None else self.allowed}), {len(load.ids):6} logged, {self.lost} lost, slowest answer {load.slowest_seconds:4.1f} s, "
            f"recovered in {self.seconds:4.1f} s{'' if self.is_fine else '   NOT WANTED'}"
        )


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def only(process: psutil.Process) -> list[psutil.Process]:
    """The process that Supervisor started."""
    return [process]


def family(process: psutil.Process) -> list[psutil.Process]:
    """It and all below it."""
    return [process, *process.children(recursive=True)]


def workers(service: psutil.Process) -> list[psutil.Process]:
    """The worker processes below Granian's main process."""
    return [child for child in service.children() if child.cmdline() == service.cmdline()]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """A SQLite database that nobody else can write to."""
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """A disk without a free byte."""
    path = folder / "filling"
    try:
        with path.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            yield
    finally:
        path.unlink()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A disk of so many bytes mounted on the folder; whether that can be done here."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def main(*wanted: str) -> None:
    """Go through the faults, or those named, and print what each did."""
    dataset = harness.data()
    outcomes = []
    with ExitStack() as held:
        settings = held.enter_context(harness.home())
        can_fill = held.enter_context(small_disk(settings.home, HOME_BYTES)) if os.name == "posix" else False
        supervisor = held.enter_context(processes.running(settings))
        list(processes.wait_healthy(supervisor, settings, processes.processes(settings)))
        harness.register(settings, COMPACT.model_copy(update={"epochs": 2}), dataset)
        _wait(lambda: harness.answers(f"{settings.service_url}/readyz"))
        for name, fault, allowed in _faults(settings, can_fill):
            if wanted and name not in wanted:
                continue
            outcomes.append(_meet(settings, name, fault, allowed, dataset.test.images[:500]))
            print(outcomes[-1], flush=True)
            for reason in outcomes[-1].load.failed[:3]:
                print(f"    {reason}", flush=True)
        if not can_fill:
            print("disk full            skipped: a tmpfs cannot be mounted here")
    raise SystemExit(0 if all(outcome.is_fine for outcome in outcomes) else 1)


def _faults(settings: Settings, can_fill: bool) -> Iterator[tuple[str, Callable[[], float], int | None]]:
    """Name, what does it and returns the moment from which recovery counts, and the requests it may cost; None if there is nobody."""
    # the only worker: connections are refused until it is replaced
    yield "service worker", lambda: _kill(settings, "service", workers), None
    yield "service, all of it", lambda: _kill(settings, "service", family), None
    yield "service's parent", lambda: _kill(settings, "service", only), None
    yield "mlflow", lambda: _kill(settings, "mlflow", family), 0
    yield "mlflow's parent", lambda: _kill(settings, "mlflow", only), 0
    yield "prefect", lambda: _kill(settings, "prefect", family), 0
    yield "flows", lambda: _kill(settings, "flows", family), 0
    yield "database locked", lambda: _during(locked(settings.home / "digits.db")), 0
    if can_fill:
        yield "disk full", lambda: _during(full(settings.home)), 0


def _kill(settings: Settings, name: str, which: Callable[[psutil.Process], list[psutil.Process]]) -> float:
    pid = processes.process_info(settings)[name]["pid"]
    victims = which(psutil.Process(pid))
    kill(victims)
    killed = time.monotonic()
    if pid in {victim.pid for victim in victims}:  # what it left behind may answer until Supervisor starts it again
        _wait(lambda: processes.process_info(settings)[name]["pid"] not in (0, pid))
    return killed


def _during(fault: AbstractContextManager[None]) -> float:
    with fault:
        time.sleep(FAULT_SECONDS)
    return time.monotonic()


def _meet(settings: Settings, name: str, fault: Callable[[], float], allowed: int | None, images: Images) -> Outcome:
    with Load(settings.service_url, images) as load:
        time.sleep(CALM_SECONDS)
        ended = fault()
        _wait(lambda: _is_well(settings))
        seconds = time.monotonic() - ended
        time.sleep(CALM_SECONDS)
    return Outcome(name, load, len(load.lost()), seconds, allowed)


def _is_well(settings: Settings) -> bool:
    """Every process healthy, the champion there, and no answer waits on disk for the database."""
    if not all(processes.is_healthy(settings, process) for process in processes.processes(settings)):
        return False
    if not harness.answers(f"{settings.service_url}/readyz"):
        return False
    about = httpx.get(f"{settings.service_url}/about", timeout=10).json()
    return bool(about["log"]["spooled_batches"] == 0 and about["log"]["waiting"] < RATE)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with suppress(httpx.HTTPError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not well after {PATIENCE_SECONDS:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
