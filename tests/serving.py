"""The service as a process of its own on a free port, for the tests that use it over HTTP."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from conftest import Registry, find_free_port
from PIL import Image

from digits.images import Images
from digits.storage import database, predictions

ROOT = Path(__file__).parent.parent


@dataclass
class Service:
    """A running service with a home, a registry and a client of its own."""

    client: httpx.Client
    home: Path
    registry: Registry
    process: subprocess.Popen[bytes]

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, (self.home / "service.log").read_text()
            assert time.monotonic() < deadline, (self.home / "service.log").read_text()
            time.sleep(0.05)

    def status(self, path: str) -> int:
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def version(self) -> Any:
        return self.client.get("/about").json()["model_version"]

    def window(self) -> predictions.PredictionWindow:
        engine = database.connect(f"sqlite:///{self.home}/digits.db")
        try:
            return predictions.read_window(engine, datetime.now(UTC) - timedelta(hours=1))
        finally:
            engine.dispose()

    def stop(self) -> None:
        """As `docker stop` or Ctrl-C would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextmanager
def serving(home: Path, registry: Registry, bentoml: Path | str | None = None, **settings: str) -> Iterator[Service]:
    """The service as `digits up` starts it, or `bentoml serve` of a module or a Bento.

    A Bento is a path, and is served from a folder where this checkout is not found.
    """
    port = find_free_port()
    (home / "bentoml").mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIGITS_")} | {
        "DIGITS_HOME": str(home),
        "DIGITS_REGISTRY_POLL_SECONDS": "0.1",
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "MLFLOW_TRACKING_URI": registry.uri,
        "DIGITS_SERVICE_PORT": str(port),
        **settings,
    }
    command = ["-m", "services"]
    if bentoml:
        command = ["-m", "bentoml", "serve", str(bentoml), "--host", "127.0.0.1", "--port", str(port)]
    # Above the limit of connections that are kept, httpcore closes one that another thread is about to use.
    limits = httpx.Limits(max_keepalive_connections=None)
    with (
        (home / "service.log").open("ab") as log,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client,
    ):
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=home if isinstance(bentoml, Path) else ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            service = Service(client, home, registry, process)
            service.wait_for(lambda: service.status("/livez") == 200)
            yield service
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def png(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def classify(service: Service, image: Images) -> dict[str, Any]:
    response = service.client.post("/classify", json={"images": image.tolist()})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer
