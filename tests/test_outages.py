"""MLflow or Prefect stops during a training: the trained model is registered all the same, and the terminal stays readable."""

import os
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


@pytest.fixture
def ports() -> tuple[int, int]:
    """Of MLflow and Prefect."""
    return find_free_port(), find_free_port()


@pytest.fixture
def environment(ports: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("DIGITS_", "MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)
    mlflow, prefect = ports
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mlflow}")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{prefect}/api")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Where MLflow and Prefect keep their state."""
    for name in ("mlflow", "prefect"):
        (tmp_path / name).mkdir()
    yield tmp_path / "mlflow", tmp_path / "prefect"


@pytest.mark.usefixtures("environment")
def test_mlflow_stops_between_training_and_recording(
    ports: tuple[int, int], folder: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train import train

    fits = 0
    fit = training.fit
    monkeypatch.setattr(tasks, "BACKOFF_SECONDS", 1)
    recipe = recipes.find("sigmoid").model_copy(update={"epochs": 3})
    with ExitStack() as servers, running_prefect(folder[1], ports[1]):
        first = ExitStack()
        first.enter_context(running_mlflow(folder[0], ports[0]))

        def stopping(*arguments: Any) -> Any:
            nonlocal fits
            fits += 1
            trained = fit(*arguments)
            first.close()
            Thread(target=restart).start()
            return trained

        def restart() -> None:
            time.sleep(OUTAGE_SECONDS)
            servers.enter_context(running_mlflow(folder[0], ports[0]))

        monkeypatch.setattr(training, "fit", stopping)
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{ports[1]}/api"}):
            version = train(recipe, "bundled")
            EventsWorker.drain_all()
        client = _client(ports[0])
        run = client.get_run(client.get_model_version(registry_reader.MODEL_NAME, version).run_id)
    assert fits == 1
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] > 0.5 and "weights_hash" in run.data.tags


def _client(port: int) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"http://127.0.0.1:{port}")


@pytest.mark.usefixtures("environment")
def test_prefect_is_killed_during_a_training_in_a_terminal(
    ports: tuple[int, int], folder: tuple[Path, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "ops", "train", "--data", "bundled", "--recipe", "compact", "--epochs", "400"]
    output = tmp_path / "terminal.txt"
    with running_mlflow(folder[0], ports[0]), running_prefect(folder[1], ports[1]) as prefect:
        with output.open("wb") as file:
            training = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: "epoch 40 of 400" in output.read_text(), seconds=180)
            prefect.send_signal(signal.SIGKILL)
            wait_for(lambda: "registered digits v1" in output.read_text(), seconds=180)
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
    assert printed.count(f"Prefect at http://127.0.0.1:{ports[1]}/api stopped answering") == 1
    assert "make it the champion with `digits promote 1`" in printed
    assert len(printed.splitlines()) <= 18
    assert seconds < 30
