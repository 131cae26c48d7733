"""`digits sweep`: searches recipes in parallel on Dask workers under a time budget and registers the best, which the gate judges.

Workers report each epoch as a Dask event and stop once a `distributed.Event` is set. They need this code and the stored
data sets, but no database, no MLflow and no Prefect server. Trials are pruned and recorded in Optuna and MLflow here.
"""

import fcntl
import logging
import os
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from distributed import Client, Event, Future, get_worker
from optuna import Study, Trial
from optuna.trial import TrialState
from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from digits import intervals
from digits.data import datasets
from digits.data.datasets import Dataset, DatasetStore
from flows import dask_cluster
from flows.ingest import load_dataset
from flows.retrain import decide, retraining_slot
from flows.tasks import publish, server_task
from flows.train import prefect_run, train_on
from models import search
from models.connections import Platform
from models.provenance import git_commit
from models.registry import RegistryWriter
from models.training import EpochMetrics, Recipe

log = logging.getLogger("digits.sweep")

SLOT_TIMEOUT_SECONDS = 3600  # for a retraining that runs to end
# In a row, and more than the attempts of one recipe: then the recipes are not the cause.
MAX_FAILURES = search.MAX_ATTEMPTS + 1


class SweepPlan(BaseModel):
    """The parameters of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("sweep", description="Name of the sweep and of its recipes.", pattern=r"^[a-z][a-z0-9-]*$")
    data: str = Field("mnist", description="SOURCE of the data set.")
    minutes: float = Field(10, ge=0, description="For the trials of this call; 0 only registers the best so far.")
    epochs: int = Field(20, ge=1, description="Passes over the training images in a trial, at most.")
    workers: int | None = Field(None, ge=1, description="Parallel trials, at most; as many as fit unless set.")


DEFAULT_PLAN = SweepPlan()


@flow(name="sweep")
def sweep(plan: SweepPlan = DEFAULT_PLAN) -> str:
    """Run trials until the time is up, then train the best recipe as `digits train` does. Returns what the gate decides.

    A sweep with the same name, data and number of epochs resumes the study of the last one, even if that was killed.
    """
    platform = Platform()
    dataset = server_task(load_dataset)(platform, plan.data)
    folder = platform.settings.home / "sweeps"
    study = search.open_study(folder, plan.name, dataset.fingerprint, plan.epochs)
    with study_lock(folder, study), parent_run(platform.registry, study, dataset) as run_id:
        try:
            if plan.minutes:
                with dask_cluster.connect(platform.settings.dask_address, plan.workers) as client:
                    SweepExecutor(platform, plan, study, dataset.fingerprint, run_id, client).run()
        finally:
            publish_trials(study, len(dataset.validation))
        return register_best(platform, study, dataset, run_id)


@contextmanager
def study_lock(folder: Path, study: Study) -> Iterator[None]:
    """Hold the study's lock, which the kernel releases with the process; raises RuntimeError if another one has it."""
    with (folder / f"{study.study_name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"{study.study_name} is running; wait for its end or choose another --name") from error
        yield


@contextmanager
def parent_run(registry: RegistryWriter, study: Study, dataset: Dataset) -> Iterator[str]:
    """Open the MLflow run around all trials of the study, again if an earlier call created it, and yield its id."""
    if n_running := search.retry_running(study):
        log.info("queued %d trials again that were running when the last call was killed", n_running)
    run_id: str | None = study.user_attrs.get("run")
    if run_id is None or not registry.reopen_run(run_id):
        tags = {"dataset": dataset.fingerprint, "study": study.study_name, **git_commit(), **prefect_run()}
        run_id = registry.open_run(study.study_name, tags)
        study.set_user_attr("run", run_id)
    try:
        yield run_id
    # Also for an interrupt.
    except BaseException as error:
        registry.close_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {})
        raise
    registry.close_run(run_id, "FINISHED", {})


def publish_trials(study: Study, n_images: int) -> None:
    """Log the best trials and show them as an artifact; `n_images` is the number of validation images."""
    complete, waiting = search.ranked(study), study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    text = f"{len(study.trials) - len(waiting)} trials so far, {len(complete)} of them complete\n"
    for trial in complete[:5]:
        accuracy = intervals.wilson(round(trial.values[0] * n_images), n_images)
        text += f"\n- trial {trial.number}: {accuracy} {search.summarize(search.recipe_of(trial))}"
    log.info("%s", text)
    publish("sweep", study.study_name, f"# {study.study_name}\n\n{text}\n")


def register_best(platform: Platform, study: Study, dataset: Dataset, parent: str) -> str:
    """Train the best recipe, unless it has a version already, and judge it as a retraining does. Returns the decision."""
    complete = search.ranked(study)
    if not complete:
        raise RuntimeError(f"no trial of {study.study_name} is complete; repeat the command with more --minutes")
    recipe = search.recipe_of(complete[0])
    version = platform.registry.trained_before(dataset.fingerprint, recipe)
    if version is None:
        tags = {"mlflow.parentRunId": parent, "trial": str(complete[0].number)}
        version = train_on(platform, dataset, recipe, tags)
    with retraining_slot(SLOT_TIMEOUT_SECONDS):
        return decide(platform, version)


load_once = lru_cache(maxsize=1)(datasets.load)  # in each worker


def run_trial(
    recipe: Recipe, number: int, storage: DatasetStore, fingerprint: str, topic: str
) -> tuple[search.TrainedTrial, str, int]:
    """One trial in a worker: the training, the worker's address and the memory of its process in bytes."""
    # Before TensorFlow is imported. One thread for each worker: more would only take turns on the same cores. The weights of a
    # trial, which are not kept, therefore differ in their last bits from those of the training that registers its recipe.
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    worker, stop = get_worker(), Event(f"{topic}-{number}")

    def proceed(epoch: int, metrics: EpochMetrics) -> bool:
        worker.log_event(topic, (number, epoch, metrics))
        return not stop.is_set()

    trained = search.train(recipe, load_once(storage, fingerprint), proceed)
    return trained, worker.address, worker.monitor.get_process_memory()


@dataclass
class RunningTrial:
    """A trial that a worker trains."""

    trial: Trial
    run_id: str
    future: Future
    stop: Event
    history: list[EpochMetrics] = field(default_factory=list)


class SweepExecutor:
    """The trials of one call of a sweep, and the study and the MLflow runs that record them."""

    def __init__(
        self, platform: Platform, plan: SweepPlan, study: Study, fingerprint: str, parent_run: str, client: Client
    ) -> None:
        self.plan, self.study, self.parent_run, self.client = plan, study, parent_run, client
        self.datasets, self.registry, self.fingerprint = platform.datasets, platform.registry, fingerprint
        self.tags = {"recipe": plan.name, "dataset": fingerprint, **git_commit(), **prefect_run()}
        self.running: dict[int, RunningTrial] = {}
        self.failures = 0  # in a row
        self.reports: queue.SimpleQueue[tuple[int, int, EpochMetrics]] = queue.SimpleQueue()
        self.topic = f"digits-{uuid4().hex}"
        client.subscribe_topic(self.topic, lambda event: self.reports.put(event[1]))

    def run(self) -> None:
        """Run trials until the time is up; enqueue those that are running then, or at an interrupt, for the next call."""
        deadline = time.time() + 60 * self.plan.minutes
        try:
            while time.time() < deadline:
                workers = len(self.client.nthreads())
                while len(self.running) < min(workers, self.plan.workers or workers):
                    self._submit_trial()
                with suppress(queue.Empty):
                    self._report(*self.reports.get(timeout=1))
                for finished in [running for running in self.running.values() if running.future.done()]:
                    self._collect(finished)
        finally:
            for running in list(self.running.values()):
                # The scheduler may be unreachable.
                with suppress(OSError):
                    running.stop.set()
                self._enqueue_again(running, "KILLED", "interrupted")

    def _submit_trial(self) -> None:
        trial, recipe = search.ask(self.study, self.plan.name, self.plan.epochs)
        number, tags = trial.number, {**self.tags, "trial": str(trial.number)}
        run_id = self.registry.open_run(f"{self.plan.name} {number}", tags, recipe, self.parent_run)
        stop = Event(f"{self.topic}-{number}", client=self.client)
        future = self.client.submit(run_trial, recipe, number, self.datasets, self.fingerprint, self.topic, pure=False)
        self.running[number] = RunningTrial(trial, run_id, future, stop)

    def _report(self, number: int, epoch: int, metrics: EpochMetrics) -> None:
        """Record and judge an epoch, once: the worker that replaces a dead one repeats its epochs."""
        running = self.running.get(number)
        if running is None or epoch < len(running.history):
            return
        running.history.append(metrics)
        running.trial.report(metrics["val_accuracy"], epoch)
        if epoch + 1 < self.plan.epochs and running.trial.should_prune():
            running.stop.set()

    def _collect(self, running: RunningTrial) -> None:
        """Record the result of a trial; raises RuntimeError after `MAX_FAILURES` in a row."""
        if error := running.future.exception():
            self._enqueue_again(running, "FAILED", f"failed with {error}")
            self.failures += 1
            if self.failures == MAX_FAILURES:
                raise RuntimeError(f"{MAX_FAILURES} trials in a row failed, the last one with: {error}") from error
            return
        trained, worker, memory_bytes = running.future.result()
        running.future.release()  # or Dask repeats the trial when the worker that holds its result dies
        self.failures = 0
        # The result can arrive before the last reports.
        for epoch, metrics in enumerate(trained.history):
            self._report(running.trial.number, epoch, metrics)
        if trained.stopped:
            self.study.tell(running.trial, state=TrialState.PRUNED)
            self._close(running, "KILLED", f"pruned after {len(running.history)} epochs at {trained.accuracy:.2%}")
        else:
            self.study.tell(running.trial, trained.accuracy)
            self.registry.log_points(running.run_id, [(len(running.history), trained.metrics)])
            self._close(running, "FINISHED", f"validation accuracy {trained.accuracy:.2%}")
        # TensorFlow keeps every program that it compiled. ValueError: no nanny would start the worker again.
        if memory_bytes > dask_cluster.WORKER_BYTES:
            with suppress(TimeoutError, ValueError):
                self.client.restart_workers([worker], timeout=dask_cluster.NO_WORKERS_TIMEOUT_SECONDS)

    def _enqueue_again(self, running: RunningTrial, status: str, reason: str) -> None:
        """Record a trial without a result, for this call or the next one to repeat."""
        state = "queued again" if search.retry(self.study, running.trial.number) else "given up"
        self._close(running, status, f"{state} after {len(running.history)} epochs: {reason}")

    def _close(self, running: RunningTrial, status: str, outcome: str) -> None:
        """End the trial and its run in MLflow, with its curves, and log one line about it."""
        del self.running[running.trial.number]
        self.registry.log_points(running.run_id, enumerate(running.history, start=1))
        self.registry.close_run(running.run_id, status, {"outcome": outcome[:5000]})
        log.info("trial %d: %s: %s", running.trial.number, outcome, search.summarize(search.recipe_of(running.trial)))
