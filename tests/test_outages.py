"""MLflow or Prefect stops during a training: the trained model is registered all the same, and the terminal stays readable."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import find_free_port, running_mlflow, running_prefect, wait_for
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import tasks
from models import recipes, registry_reader, training

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

OUTAGE_SECONDS = 6


class Mlflow:
    """A server that stops and starts again on the same port, with the same state."""

    def __init__(self, home: Path) -> None:
        self.home, self.port, self._running = home, find_free_port(), ExitStack()

    def start(self) -> None:
        self._running.enter_context(running_mlflow(self.home, self.port))

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    mlflow = Mlflow(tmp_path_factory.mktemp("mlflow"))
    mlflow.start()
    yield mlflow
    mlflow.stop()


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """The address of the API of a Prefect server, and the server."""
    port = find_free_port()
    with running_prefect(tmp_path_factory.mktemp("prefect"), port) as server:
        yield f"http://127.0.0.1:{port}/api", server


@pytest.fixture(autouse=True)
def environment(
    mlflow: Mlflow, prefect: "tuple[str, subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith(("DIGITS_", "MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mlflow.port}")
    monkeypatch.setenv("PREFECT_API_URL", prefect[0])


def test_mlflow_stops_between_training_and_recording(
    mlflow: Mlflow, prefect: "tuple[str, subprocess.Popen[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train import train

    fits = 0
    fit = training.fit
    monkeypatch.setattr(tasks, "BACKOFF_SECONDS", 1)
    recipe = recipes.find("sigmoid").model_copy(update={"epochs": 3})

    def stopping(*arguments: Any) -> Any:
        nonlocal fits
        fits += 1
        trained = fit(*arguments)
        mlflow.stop()
        restarting.start()
        return trained

    def restart() -> None:
        time.sleep(OUTAGE_SECONDS)
        mlflow.start()

    restarting = Thread(target=restart)
    monkeypatch.setattr(training, "fit", stopping)
    with temporary_settings({PREFECT_API_URL: prefect[0]}):
        version = train(recipe, "bundled")
        EventsWorker.drain_all()
    restarting.join()
    client = _client(mlflow.port)
    run = client.get_run(client.get_model_version(registry_reader.MODEL_NAME, version).run_id)
    assert fits == 1
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] > 0.5 and "weights_hash" in run.data.tags


def _client(port: int) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"http://127.0.0.1:{port}")


def test_prefect_is_killed_during_a_training_in_a_terminal(
    prefect: "tuple[str, subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    api, server = prefect
    command = [sys.executable, "-m", "ops", "train", "--data", "bundled", "--recipe", "compact", "--epochs", "400"]
    output = tmp_path / "terminal.txt"
    with output.open("wb") as file:
        training = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "epoch 40 of 400" in output.read_text(), seconds=180)
        server.send_signal(signal.SIGKILL)
        wait_for(lambda: "registered digits v" in output.read_text(), seconds=180)
        registered = time.monotonic()
        training.wait(60)
        seconds = time.monotonic() - registered
    finally:
        training.kill()
        training.wait()
    printed = output.read_text()
    print(printed, seconds)
    assert training.returncode == 0, printed
    assert "Traceback" not in printed and "EventsWorker" not in printed
    assert printed.count(f"Prefect at {api} stopped answering") == 1
    (version,) = re.findall(r"registered digits v(\d+)", printed)
    assert f"make it the champion with `digits promote {version}`" in printed
    assert len(printed.splitlines()) <= 18
    assert seconds < 30
