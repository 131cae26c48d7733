"""Shared by the benchmarks of the service: MLflow with trained versions, the service as `digits up` starts it, and wrk."""

import io
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from digits.images import Images
from digits.settings import Settings, load_settings
from models.training import Recipe
from ops import process_environment, processes

STARTUP_TIMEOUT_SECONDS = 180


@dataclass(frozen=True)
class Load:
    """Figures that wrk printed."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int

    def __str__(self) -> str:
        failed = f", {self.failed} FAILED" if self.failed else ""
        return f"{self.requests_per_second:8,.0f} requests/s, median {self.p50_ms:6.2f} ms, p99 {self.p99_ms:6.1f} ms{failed}"


@contextmanager
def home() -> Iterator[Settings]:
    """Settings with free ports and a temporary DIGITS_HOME."""
    with tempfile.TemporaryDirectory(prefix="digits-bench-") as folder:
        ports = {f"{name}_port": free_port() for name in ("service", "mlflow", "prefect", "reports")}
        uri = f"http://127.0.0.1:{ports['mlflow_port']}"
        yield Settings(home=Path(folder), mlflow_tracking_uri=uri, **ports)


def free_port() -> int:
    """A port of 127.0.0.1 that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def mlflow(settings: Settings) -> Iterator[None]:
    """A running MLflow server."""
    with _of_platform(settings, "mlflow", lambda process: processes.is_healthy(settings, process)):
        yield


@contextmanager
def prefect(settings: Settings) -> Iterator[None]:
    """A running Prefect server."""
    with _of_platform(settings, "prefect", lambda process: processes.is_healthy(settings, process)):
        yield


@contextmanager
def service(settings: Settings, **more: str) -> Iterator[psutil.Process]:
    """The running service; `more` are further environment variables."""
    url = f"{settings.service_url}/readyz"
    with _of_platform(settings, "service", lambda process: answers(url), **more) as process:
        yield process


def start_seconds(name: str) -> float:
    """Seconds that a server of the platform takes to be healthy by its own command, with a database from an earlier start."""
    with home() as settings:
        for _ in range(2):
            started = time.monotonic()
            with _of_platform(settings, name, lambda process: processes.is_healthy(settings, process)):
                seconds = time.monotonic() - started
    return seconds


@contextmanager
def _of_platform(
    settings: Settings, name: str, is_ready: Callable[[processes.Process], bool], **more: str
) -> Iterator[psutil.Process]:
    """One of the platform's processes as Supervisor would run it."""
    (settings.home / "bentoml").mkdir(exist_ok=True)
    (settings.home / "mlflow" / "artifacts").mkdir(parents=True, exist_ok=True)
    process_environment.generate_logins(settings)
    wanted = next(process for process in processes.processes(settings) if process.name == name)
    environment = {**process_environment.of_servers(settings), **more}
    with running(wanted.command, settings.home / f"{name}.log", lambda: is_ready(wanted), environment) as process:
        yield process


@contextmanager
def running(
    command: list[str], output: Path, is_ready: Callable[[], bool], environment: dict[str, str] | None = None
) -> Iterator[psutil.Process]:
    """A process that is ready; raises RuntimeError with the end of its output when it does not start."""
    with output.open("ab") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + STARTUP_TIMEOUT_SECONDS
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command[:6])} does not start: {output.read_text()[-2000:]}")
            time.sleep(0.02)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    return processes.get(url, timeout_seconds=5).status_code == 200


def png(image: Images) -> bytes:
    """An image of grey levels as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def data() -> Dataset:
    """MNIST (DIGITS_MNIST), or the bundled digits."""
    settings = load_settings()
    return sources.read("mnist" if settings.mnist else "bundled", mnist=settings.mnist, cache=settings.downloads)


def register(settings: Settings, recipe: Recipe, dataset: Dataset) -> str:
    """Train and register as `digits train` does, and point the alias `champion` to it; the version."""
    from models import candidates
    from models.registry import RegistryWriter

    registry = RegistryWriter(settings.registry_uri)
    datasets.save(dataset, settings.datasets)
    version = candidates.train(registry, settings.datasets, dataset, recipe)
    registry.set_alias("champion", version)
    return version


def wrk(url: str, script: Path, seconds: int, connections: int = 8) -> Load:
    """Load from one thread of wrk; raises FileNotFoundError where it is not installed."""
    if shutil.which("wrk") is None:
        raise FileNotFoundError("wrk is not installed; get it with `apt-get install wrk`")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    requests, micros, p50, p99, failed = (float(word) for word in done.stdout.split("digits:")[1].split())
    return Load(requests / micros * 1e6, p50 / 1000, p99 / 1000, int(failed))


def script(folder: Path, name: str, body: bytes, content_type: str) -> Path:
    """A wrk script that posts this body and ends with a line that `wrk` reads."""
    (folder / f"{name}.body").write_bytes(body)
    path = folder / f"{name}.lua"
    path.write_text(
        f"""wrk.method = "POST"
wrk.body = io.open("{folder / name}.body", "rb"):read("*a")
wrk.headers["Content-Type"] = "{content_type}"
function done(summary, latency, requests)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("digits: %d %d %f %f %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), failed))
end
"""
    )
    return path
