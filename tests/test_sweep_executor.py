"""Trials on a Dask cluster: each as if it were alone, refused where the data is not, and a lock for each study."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Queue

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from flows import sweep, sweep_executor
from models import search
from models.architectures import Dense
from models.recipes import COMPACT, Recipe


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a cluster with one worker of two threads, in this process."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("datasets")
    dataset = sources.read("bundled", mnist=None, cache=folder)
    datasets.save(dataset, folder)
    return folder, dataset


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker sets for its own process does not outlive the test."""
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "1")


def small(seed: int) -> Recipe:
    fields: dict[str, Any] = {
        "architecture": Dense(hidden=(32,), dropout=0.2),
        "epochs": 3,
        "batch_size": 64,
        "validation_fraction": None,
    }
    return COMPACT.model_copy(update={**fields, "seed": seed})


def test_trials_in_threads_of_one_process_keep_their_seeds_and_the_word_reaches_the_right_one(
    client: Client, stored: tuple[Path, Dataset]
) -> None:
    folder, dataset = stored
    alone = [search.attempt(small(seed), dataset, lambda epoch, figures: True).history for seed in range(2)]
    reports = Queue("channel", client=client)
    futures = [
        client.submit(sweep_executor.attempt, small(seed), seed, folder, dataset.fingerprint, "channel", pure=False)
        for seed in range(2)
    ]
    last = {0: 2, 1: 0}  # epoch of each
    while not all(future.done() for future in futures):
        with suppress(TimeoutError):
            number, epoch, figures = reports.get(timeout=1)  # on a busy machine the same one comes again
            assert figures == alone[number][epoch]
            replies = Queue(f"channel-{number}", client=client)
            replies.put((epoch - 1, False))  # of a worker that died
            replies.put((epoch, epoch < last[number]))
    histories = [future.result(timeout=60).tried.history for future in futures]
    assert histories == [alone[0], alone[1][:1]]


def test_a_worker_whose_answer_was_lost_asks_again(
    client: Client, stored: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies while it waits for an answer takes the next one along."""
    monkeypatch.setattr(sweep_executor, "ASK_AGAIN_SECONDS", 0.2)
    folder, dataset = stored
    reports = Queue("lossy", client=client)
    future = client.submit(sweep_executor.attempt, small(0), 0, folder, dataset.fingerprint, "lossy", pure=False)
    asked = [reports.get(timeout=60) for _ in range(3)]
    assert asked[0] == asked[1] == asked[2] and asked[0][:2] == (0, 0)
    Queue("lossy-0", client=client).put((0, False))
    assert len(future.result(timeout=60).tried.history) == 1


def test_a_worker_that_does_not_see_the_data_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"does not see .*/0123456789abcdef; let DIGITS_HOME be a folder that all"
    ):
        sweep_executor.load(tmp_path, "0123456789abcdef")


def test_data_is_read_once_in_a_process(stored: tuple[Path, Dataset]) -> None:
    folder, dataset = stored
    assert sweep_executor.load(folder, dataset.fingerprint) is sweep_executor.load(folder, dataset.fingerprint)


def test_a_cluster_that_does_not_answer_is_named(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_executor, "CONNECT_SECONDS", 0.5)
    with pytest.raises(
        ConnectionError, match=f"no Dask scheduler answers at tcp://127.0.0.1:{free_port}; start one with"
    ):
        sweep_executor.connect(f"tcp://127.0.0.1:{free_port}")


def test_a_cluster_without_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_executor, "WORKERLESS_SECONDS", 0.2)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(ConnectionError, match="has no workers; start some with `dask worker`"),
    ):
        sweep_executor.connect(empty.scheduler_address)


def test_a_given_address_is_used_and_no_process_is_started() -> None:
    with sweep_executor.cluster("tcp://elsewhere:8786", workers=4) as address:
        assert address == "tcp://elsewhere:8786"


def test_a_sweep_is_under_way_once(tmp_path: Path) -> None:
    with sweep.only_one(tmp_path, "quick"), sweep.only_one(tmp_path, "other"):
        refused = sweep.only_one(tmp_path, "quick")
        with pytest.raises(sweep.Busy, match="the sweep quick is under way; wait for its end or choose another --name"):
            refused.__enter__()
    with sweep.only_one(tmp_path, "quick"):
        pass
