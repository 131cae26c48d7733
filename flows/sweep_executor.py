"""Runs the trials of a sweep on Dask workers, prunes them after each epoch and records them in Optuna and MLflow.

Workers report each epoch as a Dask event and stop once a `distributed.Event` is set. They need this code and the stored
data sets, but no database, no MLflow and no Prefect server.
"""

import logging
import os
import queue
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import uuid4

from distributed import Client, Event, Future, get_worker
from optuna import Study, Trial
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field

from digits.data import datasets
from digits.data.datasets import BadData, Dataset, Storage
from flows import dask_cluster
from flows.connections import Platform
from flows.train import prefect_run
from models import search
from models.provenance import git_commit
from models.training import Epoch, Recipe

log = logging.getLogger("digits.sweep")

# In a row: then the recipes are not the cause.
MAX_FAILURES = 3


class SweepPlan(BaseModel):
    """The parameters of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("sweep", description="Name of the sweep and of its recipes.", pattern=r"^[a-z][a-z0-9-]*$")
    data: str = Field("mnist", description="SOURCE of the data set.")
    minutes: float = Field(10, ge=0, description="For the trials of this call; 0 only registers the best so far.")
    epochs: int = Field(20, ge=1, description="Passes over the training images in a trial, at most.")
    workers: int | None = Field(None, ge=1, description="Parallel trials, at most; as many as fit unless set.")


def run_trial(
    recipe: Recipe, number: int, storage: Storage, fingerprint: str, topic: str
) -> tuple[search.TrainedTrial, str, int]:
    """One trial in a worker: the training, the worker's address and the memory of its process in bytes."""
    # Before TensorFlow is imported. One thread for each worker: more would only take turns on the same cores.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    worker, stop = get_worker(), Event(f"{topic}-{number}")

    def proceed(epoch: int, figures: Epoch) -> bool:
        worker.log_event(topic, (number, epoch, figures))
        return not stop.is_set()

    trained = search.train(recipe, load_dataset(storage, fingerprint), proceed)
    return trained, worker.address, worker.monitor.get_process_memory()


@lru_cache(maxsize=1)
def load_dataset(storage: Storage, fingerprint: str) -> Dataset:
    """The data set, read once in each worker; raises FileNotFoundError if this machine cannot read it."""
    try:
        return datasets.load(storage, fingerprint)
    except BadData as error:
        raise FileNotFoundError(
            f"the worker on {socket.gethostname()} cannot read {storage}/{fingerprint}; "
            "let DIGITS_HOME be a folder that all machines of the cluster share, or set DIGITS_DATASETS_URL"
        ) from error


@dataclass
class RunningTrial:
    """A trial that a worker trains."""

    trial: Trial
    recipe: Recipe
    run_id: str
    future: Future
    stop: Event
    history: list[Epoch] = field(default_factory=list)

    @property
    def progress(self) -> str:
        """Such as `3 of 20 epochs`."""
        return f"{len(self.history)} of {self.recipe.epochs} epochs"


class SweepExecutor:
    """The trials of one call of a sweep, and the study and the MLflow runs that record them."""

    def __init__(
        self, platform: Platform, plan: SweepPlan, study: Study, fingerprint: str, parent_run: str, client: Client
    ) -> None:
        self.plan, self.study, self.parent_run, self.client = plan, study, parent_run, client
        self.datasets, self.registry, self.fingerprint = platform.datasets, platform.registry, fingerprint
        self.tags = {"recipe": plan.name, "dataset": fingerprint, **git_commit(), **prefect_run()}
        self.running: dict[int, RunningTrial] = {}
        self.failures: list[int] = []  # the trials that failed in a row
        self.workers_seen_at = time.time()
        self.reports: queue.SimpleQueue[tuple[int, int, Epoch]] = queue.SimpleQueue()
        self.topic = f"digits-{uuid4().hex}"
        client.subscribe_topic(self.topic, lambda event: self.reports.put(event[1]))

    def run(self) -> None:
        """Run trials until the time is up; enqueue those that are running then, or at an interrupt, for the next call."""
        deadline = time.time() + 60 * self.plan.minutes
        try:
            while time.time() < deadline:
                self._submit_trials()
                self._receive_report()
                self._collect_results()
        finally:
            for one in self.running.values():
                self._interrupt(one)

    def _submit_trials(self) -> None:
        """A trial for each idle worker; raises ConnectionError if there have been no workers for too long."""
        workers = len(self.client.nthreads())
        if workers:
            self.workers_seen_at = time.time()
        elif time.time() - self.workers_seen_at > dask_cluster.NO_WORKERS_TIMEOUT_SECONDS:
            raise ConnectionError("all workers of the Dask cluster are gone; finished trials are kept")
        while len(self.running) < min(workers, self.plan.workers or workers):
            self._submit_trial()

    def _submit_trial(self) -> None:
        trial, recipe = search.ask(self.study, self.plan.name, self.plan.epochs)
        number, tags = trial.number, {**self.tags, "trial": str(trial.number)}
        run_id = self.registry.open_run(f"{self.plan.name} {number}", tags, recipe, self.parent_run)
        stop = Event(f"{self.topic}-{number}", client=self.client)
        future = self.client.submit(run_trial, recipe, number, self.datasets, self.fingerprint, self.topic, pure=False)
        self.running[number] = RunningTrial(trial, recipe, run_id, future, stop)

    def _receive_report(self) -> None:
        with suppress(queue.Empty):
            number, epoch, figures = self.reports.get(timeout=1)
            if number in self.running:
                self._report(self.running[number], epoch, figures)

    def _report(self, one: RunningTrial, epoch: int, figures: Epoch) -> None:
        """Record and judge an epoch, once: the worker that replaces a dead one repeats its epochs."""
        if epoch < len(one.history):
            return
        one.history.append(figures)
        one.trial.report(figures["val_accuracy"], epoch)
        if epoch + 1 < one.recipe.epochs and one.trial.should_prune():
            one.stop.set()

    def _collect_results(self) -> None:
        for one in [one for one in self.running.values() if one.future.done()]:
            del self.running[one.trial.number]
            if error := one.future.exception():
                self._fail(one, error)
                continue
            trained, worker, memory_bytes = one.future.result()
            one.future.release()  # or Dask repeats the trial when the worker that holds its result dies
            self._finish(one, trained)
            if memory_bytes > dask_cluster.WORKER_BYTES:  # TensorFlow keeps every program that it compiled
                with suppress(TimeoutError, ValueError):  # ValueError: no nanny would start the worker again
                    self.client.restart_workers([worker], timeout=dask_cluster.NO_WORKERS_TIMEOUT_SECONDS)

    def _finish(self, one: RunningTrial, trained: search.TrainedTrial) -> None:
        """Record a trial that is complete or pruned."""
        self.failures.clear()
        for epoch, figures in enumerate(trained.history):  # the result can arrive before the last reports
            self._report(one, epoch, figures)
        if trained.stopped:
            self.study.tell(one.trial, state=TrialState.PRUNED)
            self._close(one, "KILLED", f"pruned after {one.progress} at {trained.accuracy:.2%}")
            return
        one.trial.set_user_attr("train_seconds", trained.seconds)
        self.study.tell(one.trial, trained.accuracy)
        metrics = {"train_seconds": trained.seconds, "parameters": trained.parameters}
        metrics["validation_accuracy"] = trained.accuracy
        self.registry.log_points(one.run_id, [(len(one.history), metrics)])
        best = {"best_validation_accuracy": self.study.best_value}
        self.registry.log_points(self.parent_run, [(one.trial.number, best)])
        self._close(one, "FINISHED", f"validation accuracy {trained.accuracy:.2%} in {trained.seconds:.1f} s")

    def _fail(self, one: RunningTrial, error: BaseException) -> None:
        """Record a failed trial; raises RuntimeError after `MAX_FAILURES` in a row, whose recipes stay enqueued."""
        self.study.tell(one.trial, state=TrialState.FAIL)
        self._close(one, "FAILED", f"failed: {error}")
        self.failures.append(one.trial.number)
        if len(self.failures) == MAX_FAILURES:
            for number in self.failures:
                search.retry(self.study, number)
            raise RuntimeError(f"{MAX_FAILURES} trials in a row failed, the last one with: {error}") from error

    def _interrupt(self, one: RunningTrial) -> None:
        """Stop a trial after its current epoch and enqueue it for the next call."""
        with suppress(OSError):  # the scheduler may be unreachable
            one.stop.set()
        self.study.tell(one.trial, state=TrialState.FAIL)
        retried = search.retry(self.study, one.trial.number)
        self._close(one, "KILLED", f"{'queued again' if retried else 'given up'} after {one.progress}")

    def _close(self, one: RunningTrial, status: str, outcome: str) -> None:
        """End the trial's run in MLflow, with its curves, and log one line about it."""
        self.registry.log_points(one.run_id, enumerate(one.history, start=1))
        self.registry.close_run(one.run_id, status, {"outcome": outcome[:5000]})
        log.info("trial %d: %s: %s", one.trial.number, outcome, search.summarize(one.recipe))
