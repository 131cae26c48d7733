"""The platform under load while its parts are killed, its database is locked, its log damaged and its disk full, one after another.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.faults
    DIGITS_DATABASE_URL=postgresql://… DIGITS_MNIST=/path/to/mnist.npz python -m bench.faults "database locked" "flipped bits"

For each fault: requests sent and failed, answers with an id, those of them not found by their id afterwards, seconds from the
kill (or from the end of a lock, of a full disk) until every process is healthy and no answer waits. The disk is a small tmpfs under
DIGITS_HOME, which only root can mount on Linux; elsewhere that fault is named as skipped. Ends with 1 when an answer is lost that
is in no record with a flipped bit, a request failed that was not in flight inside a killed process, or recovery takes longer than 10 s;
MLflow and Prefect may take 1.3 times as long as their own command, measured in the same run, where that alone takes longer than 10 s.
"""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import httpx
import numpy as np
import psutil

from bench import harness
from digits.images import Images
from digits.settings import Settings
from digits.storage import database
from models.recipes import COMPACT
from ops import processes

CLIENTS = 4
RATE = 60.0  # requests per second of all clients together
# How long the database is locked and the disk is full.
FAULT_SECONDS = 10.0
# Load before each fault and after its recovery.
CALM_SECONDS = 3.0
TIMEOUT_SECONDS = 120.0
MAX_RECOVERY_SECONDS = 10.0
# For a server whose own command takes longer than that: MLflow's imports everything, and then its worker does so again.
MAX_RECOVERY_RATIO = 1.3
HOME_BYTES = 1_000_000_000
FLIPPED_BITS = 5


@dataclass
class Load:
    """Clients that send single images at a steady rate and record every answer, inside a `with` block."""

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
        """Ids that the service does not find; None stands for an answer that was not logged."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            return [str(id) for id in self.ids if id is None or _status(client, str(id)) != httpx.codes.OK]


def _status(client: httpx.Client, id: str) -> int:
    """The status of the answer about a prediction, asked again for a minute while the log's database is not reached (503)."""
    deadline = time.monotonic() + 60
    while (status := client.get(f"/predictions/{id}").status_code) == httpx.codes.SERVICE_UNAVAILABLE:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return status


@dataclass(frozen=True)
class Outcome:
    """What one fault did."""

    fault: str
    load: Load
    lost: int
    seconds: float
    # Requests that may have been in flight in the killed process; None where no worker is left to answer.
    allowed: int | None
    allowed_losses: int
    # How long the killed server's own command takes to be healthy; None where that is not measured.
    start_seconds: float | None

    @property
    def passed(self) -> bool:
        few = self.allowed is None or len(self.load.failed) <= self.allowed
        start = self.start_seconds or 0.0
        limit = MAX_RECOVERY_RATIO * start if start > MAX_RECOVERY_SECONDS else MAX_RECOVERY_SECONDS
        return few and self.lost <= self.allowed_losses and self.seconds < limit

    def __str__(self) -> str:
        load = self.load
        start = (
            ""
            if self.start_seconds is None
            else f", {self.seconds / self.start_seconds:.2f} × its bare start of {self.start_seconds:.1f} s"
        )
        return (
            f"{self.fault:20} {load.sent:6} sent, {len(load.failed):3} failed "
            f"(in flight: {'all' if self.allowed is None else self.allowed}), {len(load.ids):6} logged, {self.lost} lost, slowest answer {load.slowest_seconds:4.1f} s, "
            f"recovered in {self.seconds:4.1f} s{start}{'' if self.passed else '   FAILED'}"
        )


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def only(process: psutil.Process) -> list[psutil.Process]:
    """The process that Supervisor started."""
    return [process]


def tree(process: psutil.Process) -> list[psutil.Process]:
    """The process and all its descendants."""
    return [process, *process.children(recursive=True)]


def workers(service: psutil.Process) -> list[psutil.Process]:
    """The worker processes below Granian's main process."""
    return [child for child in service.children() if child.cmdline() == service.cmdline()]


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep others from writing to a SQLite database, or to the prediction log in PostgreSQL."""
    engine = database.make_engine(url, busy_seconds=60)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
        else:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("LOCK TABLE prediction_batches IN ACCESS EXCLUSIVE MODE")
        try:
            yield
        finally:
            connection.exec_driver_sql("ROLLBACK")


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the disk of a folder to the last byte."""
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
    """Mount a tmpfs of `size` bytes on the folder; gives whether that was possible."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def main(*wanted: str) -> None:
    """Cause every fault, or those named, and print the outcome of each."""
    dataset = harness.data()
    outcomes = []
    with ExitStack() as held:
        settings = held.enter_context(harness.home())
        can_fill = held.enter_context(small_disk(settings.home, HOME_BYTES)) if os.name == "posix" else False
        supervisor = held.enter_context(processes.running(settings))
        list(processes.wait_healthy(supervisor, settings, processes.processes(settings)))
        harness.register(settings, COMPACT.model_copy(update={"epochs": 2}), dataset)
        _wait(lambda: harness.answers(f"{settings.service_url}/readyz"))
        for fault in _faults(settings, can_fill):
            if wanted and fault.name not in wanted:
                continue
            outcomes.append(_measure(settings, fault, dataset.test.images[:500]))
            print(outcomes[-1], flush=True)
            for reason in outcomes[-1].load.failed[:3]:
                print(f"    {reason}", flush=True)
        if not can_fill:
            print("disk full            skipped: a tmpfs cannot be mounted here")
    raise SystemExit(0 if all(outcome.passed for outcome in outcomes) else 1)


class Fault(NamedTuple):
    """What is done to the platform."""

    name: str
    # Returns when the recovery begins.
    cause: Callable[[], float]
    # How many requests may fail, None for any number, and how many logged predictions it may cost.
    allowed: int | None = 0
    allowed_losses: int = 0
    # Whose bare start the recovery is compared with.
    server: str | None = None


def _faults(settings: Settings, can_fill: bool) -> Iterator[Fault]:
    # The only worker: connections are refused until it is replaced.
    yield Fault("service worker", lambda: _kill(settings, "service", workers), None)
    yield Fault("service, all of it", lambda: _kill(settings, "service", tree), None)
    yield Fault("service's parent", lambda: _kill(settings, "service", only), None)
    yield Fault("mlflow", lambda: _kill(settings, "mlflow", tree), server="mlflow")
    yield Fault("mlflow's parent", lambda: _kill(settings, "mlflow", only))
    yield Fault("prefect", lambda: _kill(settings, "prefect", tree), server="prefect")
    yield Fault("flows", lambda: _kill(settings, "flows", tree))
    yield Fault("database locked", lambda: _during(locked(settings.database_url)))
    # A record holds the answers of all clients that waited at the same time.
    yield Fault("flipped bits", lambda: _flip(settings), allowed_losses=FLIPPED_BITS * CLIENTS)
    if can_fill:
        yield Fault("disk full", lambda: _during(full(settings.home)))
        yield Fault("disk full, killed", lambda: _kill_while_full(settings), None)


def _flip(settings: Settings) -> float:
    """Flip bits in the write-ahead log while it cannot be written to the database."""
    random = np.random.default_rng(0)
    with locked(settings.database_url):
        time.sleep(FAULT_SECONDS)
        # a segment of a running worker, and those that it has handed over
        paths = [path for path in settings.spool.iterdir() if path.suffix in (".wal", ".sealed")]
        for path in random.choice(np.array(paths, object), FLIPPED_BITS):
            with path.open("r+b") as file:
                content = file.read().rstrip(b"\0")
                position = int(random.integers(len(content)))
                file.seek(position)
                file.write(bytes([content[position] ^ 1 << int(random.integers(8))]))
    return time.monotonic()


def _kill_while_full(settings: Settings) -> float:
    """A worker's death frees the space that it had reserved, and only that."""
    with full(settings.home):
        time.sleep(FAULT_SECONDS / 2)
        _kill(settings, "service", workers)
        time.sleep(FAULT_SECONDS / 2)
    return time.monotonic()


def _kill(settings: Settings, name: str, which: Callable[[psutil.Process], list[psutil.Process]]) -> float:
    pid = processes.process_info(settings)[name]["pid"]
    victims = which(psutil.Process(pid))
    kill(victims)
    killed = time.monotonic()
    # A worker that survives its parent may answer until Supervisor starts the parent again.
    if pid in {victim.pid for victim in victims}:
        _wait(lambda: processes.process_info(settings)[name]["pid"] not in (0, pid))
    return killed


def _during(fault: AbstractContextManager[None]) -> float:
    with fault:
        time.sleep(FAULT_SECONDS)
    return time.monotonic()


def _measure(settings: Settings, fault: Fault, images: Images) -> Outcome:
    with Load(settings.service_url, images) as load:
        time.sleep(CALM_SECONDS)
        ended = fault.cause()
        _wait(lambda: _is_recovered(settings))
        seconds = time.monotonic() - ended
        time.sleep(CALM_SECONDS)
        # with the platform and the clients beside it, as in the recovery
        start = harness.start_seconds(fault.server) if fault.server else None
    return Outcome(fault.name, load, len(load.lost()), seconds, fault.allowed, fault.allowed_losses, start)


def _is_recovered(settings: Settings) -> bool:
    """Whether every process is healthy, the champion is served and no prediction waits on disk for the database."""
    if not all(processes.is_healthy(settings, process) for process in processes.processes(settings)):
        return False
    if not harness.answers(f"{settings.service_url}/readyz"):
        return False
    about = httpx.get(f"{settings.service_url}/about", timeout=10).json()
    return bool(about["log"]["sealed_segments"] == 0 and about["log"]["waiting"] < RATE)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        with suppress(httpx.HTTPError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no recovery after {TIMEOUT_SECONDS:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
