"""What a training records survives an MLflow server that is stopped and started again: no point is lost, none is doubled."""

import secrets
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import Runs, find_free_port, running_mlflow
from matplotlib.figure import Figure

from digits.data import datasets, sources
from models import challengers, runs
from models.model_store import ModelStore
from models.recipes import SIGMOID
from models.registry import RegistryWriter
from models.registry_reader import RegistryReader, RegistryUnreachable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EPOCHS = ({"train_loss": 0.5}, {"train_loss": 0.4}, {"train_loss": 0.3})


def test_recording_survives_a_restart_of_mlflow(trained_runs: Runs, tmp_path: Path) -> None:
    dataset = sources.read("bundled", mnist=None, cache=tmp_path)
    model = ModelStore(trained_runs.uri, trained_runs.champions).fetch_version(trained_runs.first)
    reader = RegistryReader(trained_runs.uri)
    files = {name: reader.download(trained_runs.first, name) for name in model.card["files"]}
    home, port = tmp_path / "mlflow", find_free_port()
    home.mkdir()
    uri = f"http://127.0.0.1:{port}"
    with running_mlflow(home, port):
        writer = RegistryWriter(uri)
        run = writer.run(SIGMOID, {**datasets.describe(dataset), "location": "digits.npz"}, dataset, {})
        run_id = run.__enter__()
        writer.log_epoch(0, EPOCHS[0])
        writer.log_results({"early": 1.0}, {}, {})
    for epoch in (1, 2):
        writer.log_epoch(epoch, EPOCHS[epoch])
    calls = (
        lambda: writer.log_results(
            {"test_accuracy": 0.9}, {"weights_hash": "abc"}, {"summary.txt": "summary", "figures/curve.png": Figure()}
        ),
        lambda: writer.register({**model.card, "run_id": run_id}, files),
        lambda: writer.set_alias("champion", "1"),
    )
    for call in calls:
        with pytest.raises(
            RegistryUnreachable, match=f"MLflow at http://127.0.0.1:{port} failed or is unreachable: .*; start"
        ):
            call()
    with running_mlflow(home, port), ThreadPoolExecutor(1) as another_thread:
        for call in (*calls, *calls):
            another_thread.submit(call).result()
        run.__exit__(None, None, None)
        read = runs.find(writer, "1")
        assert (read.id, read.status, read.metrics["test_accuracy"]) == (run_id, "FINISHED", 0.9)
        points = [
            (point.step, {"train_loss": point.value})
            for point in writer.client.get_metric_history(run_id, "train_loss")
        ]
        assert points == list(enumerate(EPOCHS, start=1))
        assert len(writer.client.search_model_versions("name='digits'")) == 1
        assert len(writer.client.get_run(run_id).outputs.model_outputs) == 1
        fetched = ModelStore(uri, tmp_path / "champions").fetch()
        np.testing.assert_array_equal(
            fetched.predict_proba(dataset.test.images), model.predict_proba(dataset.test.images)
        )


def test_a_failed_training_raises_its_own_error_when_mlflow_is_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = sources.read("bundled", mnist=None, cache=tmp_path)
    with ExitStack() as stopping:
        port = find_free_port()
        stopping.enter_context(running_mlflow(tmp_path, port))
        writer = RegistryWriter(f"http://127.0.0.1:{port}")
        with (
            pytest.raises(ZeroDivisionError),
            writer.run(SIGMOID, {**datasets.describe(dataset), "location": "digits.npz"}, dataset, {}),
        ):
            stopping.close()
            1 / 0  # noqa: B018
    assert f"the end of run {writer.run_id} (FAILED) is not recorded: MLflow at " in caplog.text


def test_the_error_names_the_cause_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the traceback, which Prefect logs."""
    password = secrets.token_hex()
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    with pytest.raises(RegistryUnreachable, match=r"unreachable: .*Max retries exceeded.*; start it") as refused:
        RegistryWriter(f"http://admin:{password}@127.0.0.1:{find_free_port()}")
    logged = "".join(traceback.format_exception(refused.value))
    assert "The above exception was the direct cause" in logged and password not in logged


def test_versions_are_found_by_a_tag_and_an_alias_is_removed(trained_runs: Runs, tmp_path: Path) -> None:
    """As challengers need it of a real server: the queue in its order, and the alias that follows it."""
    writer, store = RegistryWriter(trained_runs.uri), ModelStore(trained_runs.uri, tmp_path)
    noon = datetime(2026, 1, 5, 12, tzinfo=UTC)
    try:
        challengers.enqueue(writer, trained_runs.other_seed, noon)
        challengers.enqueue(writer, trained_runs.first, noon + timedelta(hours=1))
        waiting = [one.version for one in challengers.queue(writer)]
        assert waiting == [trained_runs.other_seed, trained_runs.first]
        writer.tag_version(trained_runs.first, {"empty": ""})
        assert store.registry.tagged("challenger", "waiting") == writer.tagged("challenger", "waiting")
        assert challengers.appoint(writer, store, noon) == store.registry.version("challenger") == waiting[0]
    finally:
        for version in (trained_runs.other_seed, trained_runs.first):
            challengers.close(writer, version, "expired")
    assert challengers.queue(writer) == [] and challengers.appoint(writer, store, noon) is None
    assert store.registry.version("challenger") is None
