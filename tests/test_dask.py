"""Batch prediction on a Dask cluster of two workers: the answers are those of this machine, even when a worker is killed."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster import Cluster, running
from conftest import Files, Registry
from distributed import Client, LocalCluster

from digits import reference
from digits.data import kaggle_csv
from digits.settings import Settings
from flows import dask_cluster, score
from models import onnx_model, scoring
from models.connections import Platform

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(workers=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with dask_cluster.connect(cluster.address) as client:
        client.wait_for_workers(2, timeout=120)
        yield client


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred rows are many chunks."""
    monkeypatch.setattr(kaggle_csv, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 5)


@pytest.fixture
def csv(champion_files: Files, tmp_path: Path) -> Path:
    """A few hundred real digits, three bad rows among them."""
    images = reference.from_bytes(champion_files["reference.npz"]).images.reshape(-1, 784)
    lines = [",".join(map(str, row)) for row in images.tolist()]
    for place in (7, 150, 300):
        lines.insert(place, "no,image")
    path = tmp_path / "test.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_file_is_answered_on_the_cluster_as_on_this_machine(
    cluster: Cluster,
    client: Client,
    csv: Path,
    registry: Registry,
    champion_files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    alone = Settings()
    spread = alone.model_copy(update={"dask_address": cluster.address})
    champion = Platform(alone).models.fetch()
    parquet = tmp_path / "test.parquet"
    images = reference.from_bytes(champion_files["reference.npz"]).images
    pq.write_table(pa.table({"image": [image.tobytes() for image in images]}), parquet)
    for source in (csv, parquet):
        counts = [
            score.write_answers(source, tmp_path / name, champion, settings)
            for name, settings in (("alone.csv", alone), ("spread.csv", spread))
        ]
        assert counts[0].answered == counts[1].answered == len(images)
        assert counts[0].rejected == counts[1].rejected == (3 if source == csv else 0)
        assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "spread.csv").read_bytes()


def test_a_killed_worker_costs_time_and_no_result(
    cluster: Cluster, client: Client, csv: Path, champion_files: Files
) -> None:
    function = partial(scoring.predict_chunk, predict_proba=onnx_model.load(champion_files["model.onnx"]).predict_proba)
    expected = list(scoring.in_threads(function, scoring.chunks(csv)))
    results = score.on_cluster(client, function, scoring.chunks(csv))
    found = [next(results) for _ in range(3)]
    victim = cluster.workers()[0]
    victim.kill()
    found += results
    assert len(found) == len(expected) > 30
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
        assert one[2] == other[2]
    client.wait_for_workers(2, timeout=120)
    assert victim.pid not in [worker.pid for worker in cluster.workers()]


def test_what_the_function_raises_comes_back(client: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        list(score.on_cluster(client, partial(divmod, 1), [1, 0, 2]))


def test_a_cluster_that_has_lost_all_its_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "NO_WORKERS_TIMEOUT_SECONDS", 0.2)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as empty,
        Client(empty) as client,
        pytest.raises(ConnectionError, match="all workers of the Dask cluster are gone; call this again"),
    ):
        list(score.on_cluster(client, str, [1]))
