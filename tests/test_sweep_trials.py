"""Trials on Dask workers: each as if it were alone, stopped on request, refused without data; failures and locks."""

import queue
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Event, LocalCluster
from optuna import Study
from optuna.trial import TrialState

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from flows import sweep
from flows.sweep import MAX_FAILURES, SweepExecutor, SweepPlan
from models import search
from models.connections import Platform
from models.recipes import COMPACT
from models.training import Recipe

EPOCHS = 40


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
    folder = tmp_path_factory.mktemp("home") / "datasets"
    dataset = sources.read("bundled", mnist=None, cache=folder)
    datasets.save(dataset, folder)
    return folder, dataset


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a worker sets for its own process do not outlive the test."""
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "1")


def small(seed: int) -> Recipe:
    architecture = COMPACT.architecture.model_copy(update={"hidden": (32,), "dropout": 0.2})
    fields: dict[str, Any] = {"epochs": 3, "batch_size": 64, "validation_fraction": None, "seed": seed}
    return COMPACT.model_copy(update={"architecture": architecture, **fields})


def test_trials_in_threads_of_one_process_keep_their_seeds_and_report_their_epochs(
    client: Client, stored: tuple[Path, Dataset]
) -> None:
    folder, dataset = stored
    alone = [search.train(small(seed), dataset, lambda epoch, metrics: True).history for seed in range(2)]
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.subscribe_topic("topic", lambda event: reports.put(event[1]))
    futures = [
        client.submit(sweep.run_trial, small(seed), seed, folder, dataset.fingerprint, "topic", pure=False)
        for seed in range(2)
    ]
    assert [future.result(timeout=60)[0].history for future in futures] == alone
    received = sorted((reports.get(timeout=10) for _ in range(6)), key=lambda report: tuple(report[:2]))
    assert [(number, epoch) for number, epoch, _ in received] == [(n, epoch) for n in range(2) for epoch in range(3)]
    assert all(metrics == alone[number][epoch] for number, epoch, metrics in received)


def test_a_stopped_trial_ends_after_its_epoch_and_the_other_one_does_not(
    client: Client, stored: tuple[Path, Dataset]
) -> None:
    folder, dataset = stored
    Event("stops-0", client=client).set()
    futures = [
        client.submit(sweep.run_trial, small(seed), seed, folder, dataset.fingerprint, "stops", pure=False)
        for seed in range(2)
    ]
    (stopped, _, memory_bytes), (complete, _, _) = (future.result(timeout=60) for future in futures)
    assert len(stopped.history) == 1 and stopped.stopped
    assert len(complete.history) == 3 and not complete.stopped
    assert memory_bytes > 10_000_000


class Runs:
    """Stands for the registry: the open MLflow runs by number, their status and the steps on their curves."""

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self.steps: dict[str, list[int]] = {}

    def open_run(self, name: str, tags: dict[str, str], recipe: Recipe, parent: str) -> str:
        self.status[tags["trial"]] = "RUNNING"
        return tags["trial"]

    def log_points(self, run_id: str, points: Any) -> None:
        self.steps.setdefault(run_id, []).extend(step for step, metrics in points if "val_accuracy" in metrics)

    def close_run(self, run_id: str, status: str, tags: dict[str, str]) -> None:
        self.status[run_id] = status


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return search.open_study(tmp_path, "sweep", "0123456789abcdef", EPOCHS)


@pytest.fixture
def executor(
    client: Client, study: Study, stored: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch
) -> SweepExecutor:
    monkeypatch.setenv("DIGITS_HOME", str(stored[0].parent))
    plan, platform = SweepPlan(epochs=EPOCHS, minutes=1), Platform()
    vars(platform)["registry"] = Runs()
    return SweepExecutor(platform, plan, study, stored[1].fingerprint, "parent", client)


def test_failures_in_a_row_end_the_sweep_and_are_enqueued_again(
    executor: SweepExecutor, study: Study, tmp_path: Path
) -> None:
    executor.datasets = tmp_path / "elsewhere"
    with pytest.raises(
        RuntimeError, match=r"4 trials in a row failed, the last one with: there is no data set .* in .*elsewhere"
    ):
        executor.run()
    failed, waiting = (study.get_trials(states=(state,)) for state in (TrialState.FAIL, TrialState.WAITING))
    assert len(failed) == MAX_FAILURES
    assert {search.recipe_of(trial).seed for trial in failed} == {search.recipe_of(trial).seed for trial in waiting}
    assert set(executor.registry.status.values()) == {"FAILED"}  # type: ignore[attr-defined]


def test_a_trial_below_the_median_is_pruned_and_repeated_epochs_are_recorded_once(
    executor: SweepExecutor, study: Study
) -> None:
    for _ in range(search.STARTUP_TRIALS):
        trial, _ = search.ask(study, "sweep", EPOCHS)
        for epoch in range(EPOCHS):
            trial.report(1.1, epoch)
        study.tell(trial, 1.1)
    executor._submit_trial()
    ((number, one),) = executor.running.items()
    while executor.running:
        with suppress(queue.Empty):
            executor._report(*executor.reports.get(timeout=1))
        if one.history:
            executor._report(number, 0, {"val_accuracy": 0.0})  # the worker that replaces a dead one repeats its epochs
        if one.future.done():
            executor._collect(one)
    pruned = study.trials[number]
    assert pruned.state == TrialState.PRUNED
    assert EPOCHS // 4 < len(pruned.intermediate_values) < EPOCHS
    assert pruned.intermediate_values[0] > 0
    steps = executor.registry.steps[str(number)]  # type: ignore[attr-defined]
    assert steps == list(range(1, len(pruned.intermediate_values) + 1))
    assert executor.registry.status == {str(number): "KILLED"}  # type: ignore[attr-defined]


def test_the_end_of_the_time_interrupts_the_running_trials_and_queues_them_again(
    executor: SweepExecutor, study: Study
) -> None:
    executor.plan = SweepPlan(epochs=EPOCHS, minutes=0.001)
    executor.run()
    (interrupted,) = study.get_trials(states=(TrialState.FAIL,))
    assert study.trials[-1].state == TrialState.WAITING
    assert search.recipe_of(study.trials[-1]) == search.recipe_of(interrupted)
    assert set(executor.registry.status.values()) == {"KILLED"}  # type: ignore[attr-defined]


def test_data_is_read_once_in_a_process(stored: tuple[Path, Dataset]) -> None:
    folder, dataset = stored
    first = sweep.load_once(folder, dataset.fingerprint)
    assert sweep.load_once(folder, dataset.fingerprint) is first


def test_only_one_process_works_on_a_study(study: Study, tmp_path: Path) -> None:
    other = search.open_study(tmp_path, "other", "0123456789abcdef", EPOCHS)
    with sweep.study_lock(tmp_path, study), sweep.study_lock(tmp_path, other):
        refused = sweep.study_lock(tmp_path, study)
        with pytest.raises(
            RuntimeError, match=r"sweep-0123456789abcdef-.* is running; wait for its end or choose another"
        ):
            refused.__enter__()
    with sweep.study_lock(tmp_path, study):
        pass
