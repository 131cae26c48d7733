"""The trials of a sweep: trained side by side on a Dask cluster, judged after every epoch and written down here.

A worker gets a recipe and the fingerprint of the data, and asks after every epoch whether to go on. It needs this code and the
folder or bucket of data sets, but no database and no MLflow.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.resource_tracker import ensure_running
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from digits.data import datasets
from digits.data.datasets import Dataset, Storage
from digits.settings import load_settings
from flows.train import prefect_run
from models.recipes import Recipe

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s, Dask and Optuna 1 s each
    from distributed import Client, Queue

    from models.search import Attempt
    from models.training import Epoch

log = logging.getLogger("digits.sweep")

WORKER_BYTES = 2_500_000_000  # 0.9 GB of TensorFlow, MNIST and its distorted copies, 20 to 30 MB for each trial before
CONNECT_SECONDS = 20
WORKERLESS_SECONDS = 60  # that the cluster may be without workers; one that died is replaced in 5
ASK_AGAIN_SECONDS = 10
ANSWER_SECONDS = 180  # that a worker waits: twice what MLflow's retries can keep this side from answering
FLUSH_SECONDS = 10  # between points on the curves of a trial under way
FAILURES = 3  # in a row; then it is not the recipes' fault


class Plan(BaseModel):
    """What a sweep is asked to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("sweep", description="Name of the sweep and of its recipes.", pattern=r"^[a-z][a-z0-9-]*$")
    data: str = Field("mnist", description="SOURCE of the data set.")
    minutes: float = Field(10, ge=0, description="For the trials of this call; 0 only registers the best so far.")
    epochs: int = Field(20, ge=1, description="Passes over the training images in a trial, at most.")
    workers: int | None = Field(None, ge=1, description="Trials at once, at most; unless set as many as fit.")


def run(plan: Plan, fingerprint: str, parent: str) -> None:
    """Trials until the time is up, on the cluster from the settings or on one of this machine."""
    from prefect_dask.task_runners import DaskTaskRunner

    if plan.minutes:
        with cluster(load_settings().dask_address, plan.workers) as address:
            runner: Any = DaskTaskRunner(address=address)  # whose futures Prefect's annotations do not allow for
            judge_trials.with_options(task_runner=runner)(plan, fingerprint, parent, address)


@flow(name="trials")
def judge_trials(plan: Plan, fingerprint: str, parent: str, address: str) -> None:
    """Each trial is a task of this flow on the cluster; the time runs from when there is somebody to work."""
    with connect(address) as client:
        Trials(plan, fingerprint, parent, time.time() + 60 * plan.minutes, client).run()


# The cluster


@contextmanager
def cluster(given: str | None, workers: int | None) -> Iterator[str]:
    """The given address of a Dask scheduler, or that of one with worker processes on this machine."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told here, in a sentence
    if given:
        yield given
        return
    from dask.system import CPU_COUNT
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    fitting = max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_BYTES))
    with interrupts_held():
        local = LocalCluster(
            n_workers=workers or fitting,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
    with local:
        yield local.scheduler_address


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block; threads begun in it, and the processes they start, never hear it.

    A terminal sends it to all of them, and only the one that judges the trials knows what to do.
    """
    ensure_running()  # multiprocessing's resource tracker unblocks SIGINT in the thread that happens to start it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def connect(address: str) -> "Client":
    """A client of the cluster; raises ConnectionError where there is no scheduler or nobody works for it."""
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address}; start one with `dask scheduler` or unset DIGITS_DASK_ADDRESS"
        ) from error
    try:
        client.wait_for_workers(1, timeout=WORKERLESS_SECONDS)
    except TimeoutError as error:
        raise ConnectionError(
            f"the Dask scheduler at {address} has no workers; start some with `dask worker`"
        ) from error
    return client


# In the worker


@dataclass(frozen=True)
class Done:
    """A trial that a worker is through with."""

    tried: "Attempt"
    worker: str  # its address
    memory_bytes: int  # of its process


def attempt(recipe: Recipe, number: int, storage: Storage, fingerprint: str, channel: str) -> Done:
    """One trial in a worker process; after every epoch it reports and waits for the word to go on."""
    # Before TensorFlow is imported. One thread for each worker: more would only take turns on the same cores.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    from distributed import Queue, get_worker

    from models import search

    reports, replies = Queue(channel), Queue(f"{channel}-{number}")

    def go_on(epoch: int, figures: "Epoch") -> bool:
        until = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < until:
            reports.put((number, epoch, figures))
            with suppress(
                TimeoutError
            ):  # a worker that died waiting took its answer along: Dask's queues do not notice
                while True:
                    about, word = replies.get(timeout=ASK_AGAIN_SECONDS)
                    if about == epoch:  # else it was for a worker that died
                        return bool(word)
        raise TimeoutError(f"nobody has said for {ANSWER_SECONDS} s whether trial {number} is to go on")

    tried = search.attempt(recipe, load(storage, fingerprint), go_on)
    worker = get_worker()
    return Done(tried, worker.address, worker.monitor.get_process_memory())


@lru_cache(maxsize=1)
def load(storage: Storage, fingerprint: str) -> Dataset:
    """The data set, read once in each worker process; raises FileNotFoundError where this machine cannot get at it."""
    if not datasets.has(storage, fingerprint):
        raise FileNotFoundError(
            f"the worker on {socket.gethostname()} does not see {storage}/{fingerprint}; "
            "let DIGITS_HOME be a folder that all machines of the cluster share, or set DIGITS_DATASETS_URL"
        )
    return datasets.load(storage, fingerprint)


train_attempt = task(name="trial", task_run_name="trial-{number}", cache_policy=NO_CACHE)(attempt)


# The judge


@dataclass
class UnderWay:
    """A trial that a worker is at."""

    number: int
    recipe: Recipe
    run_id: str
    future: Any  # PrefectDaskFuture[Done], which Prefect's annotations do not know
    replies: "Queue"
    history: "list[Epoch]" = field(default_factory=list)
    verdict: Literal["go on", "pruned", "out of time"] = "go on"
    flushed: int = 0  # epochs on the curves in MLflow
    flushed_at: float = field(default_factory=time.time)


class Trials:
    """The trials of one call: those under way, and the study and the MLflow runs they are written to."""

    def __init__(self, plan: Plan, fingerprint: str, parent: str, deadline: float, client: "Client") -> None:
        from distributed import Queue

        from models.registry import RegistryWriter, git_commit
        from models.search import Search

        settings = load_settings()
        self.plan, self.fingerprint, self.parent, self.deadline = plan, fingerprint, parent, deadline
        self.datasets, self.registry, self.client = (
            settings.datasets,
            RegistryWriter(settings.mlflow_tracking_uri),
            client,
        )
        self.search = Search(settings.sweeps, plan.name, fingerprint, plan.epochs)
        self.tags = {"recipe": plan.name, "dataset": fingerprint, **git_commit(), **prefect_run()}
        self.channel = f"digits-{uuid4().hex}"
        self.reports = Queue(self.channel, client=client)
        self.under_way: dict[int, UnderWay] = {}
        self.failures: list[int] = []  # in a row
        self.manned_at = time.time()

    def run(self) -> None:
        """Until the deadline; what is under way then, or at an interrupt, is told to stop and queued for the next call."""
        try:
            while self._fill() or self.under_way:
                self._listen()
                self._collect()
        finally:
            self._abandon()

    def _fill(self) -> bool:
        """A trial for every worker that has none; whether there is time for more of them later."""
        workers = len(self.client.nthreads())
        if workers:
            self.manned_at = time.time()
        if time.time() - self.manned_at > WORKERLESS_SECONDS:
            raise ConnectionError("all workers of the Dask cluster are gone; what was finished is kept")
        places = min(workers, self.plan.workers or workers)
        while time.time() < self.deadline and len(self.under_way) < places:
            self._submit()
        return time.time() < self.deadline

    def _submit(self) -> None:
        from distributed import Queue

        number, recipe = self.search.propose()
        tags = {**self.tags, "trial": str(number)}
        run_id = self.registry.open_run(f"{self.plan.name} {number}", tags, recipe, self.parent)
        future = train_attempt.submit(recipe, number, self.datasets, self.fingerprint, self.channel)
        replies = Queue(f"{self.channel}-{number}", client=self.client)
        self.under_way[number] = UnderWay(number, recipe, run_id, future, replies)

    def _listen(self) -> None:
        """Answer one report; after a second without any, look whether a worker has died."""
        with suppress(TimeoutError):
            number, epoch, figures = self.reports.get(timeout=1)
            if number in self.under_way:
                self._answer(self.under_way[number], epoch, figures)

    def _answer(self, one: UnderWay, epoch: int, figures: "Epoch") -> None:
        if epoch == len(one.history):  # else it asks again, or Dask does the trial again, after the death of a worker
            one.history.append(figures)
            if not self.search.goes_on(one.number, epoch, figures):
                one.verdict = "pruned"
            elif time.time() > self.deadline and epoch + 1 < one.recipe.epochs:
                one.verdict = "out of time"
        one.replies.put((epoch, one.verdict == "go on"))
        if time.time() - one.flushed_at > FLUSH_SECONDS:
            self._flush(one)

    def _flush(self, one: UnderWay) -> None:
        """The epochs since the last time, as points on the trial's curves."""
        points = [(epoch + 1, one.history[epoch]) for epoch in range(one.flushed, len(one.history))]
        self.registry.log_points(one.run_id, points)
        one.flushed, one.flushed_at = len(one.history), time.time()

    def _collect(self) -> None:
        """Write down the trials that came to an end; raises RuntimeError when they do nothing but fail."""
        for one in [one for one in self.under_way.values() if one.future.wrapped_future.done()]:
            del self.under_way[one.number]
            done = _result(one.future)
            one.future.wrapped_future.release()  # else Dask does it again when the worker that holds the result dies
            if not isinstance(done, Done):
                self._fail(one, done)
            elif one.verdict == "out of time":
                self._set_aside(one)
            else:
                self._finish(one, done.tried)
                self._renew(done.worker, done.memory_bytes)

    def _finish(self, one: UnderWay, tried: "Attempt") -> None:
        """A trial that was trained to its end, or pruned."""
        from models.search import accuracy

        self.failures.clear()
        reached = accuracy(one.recipe, tried.history)
        if one.verdict == "pruned":
            self.search.prune(one.number)
            self._close(
                one, "KILLED", f"pruned after {len(tried.history)} of {one.recipe.epochs} epochs at {reached:.2%}"
            )
            return
        self.search.complete(one.number, reached, tried.seconds)
        figures = {"train_seconds": tried.seconds, "parameters": tried.parameters, "validation_accuracy": reached}
        self.registry.log_points(one.run_id, [(len(tried.history), figures)])
        best = self.search.results()[0].accuracy
        self.registry.log_points(self.parent, [(one.number, {"best_validation_accuracy": best})])
        self._close(one, "FINISHED", f"validation accuracy {reached:.2%} in {tried.seconds:.1f} s")

    def _renew(self, worker: str, memory_bytes: int) -> None:
        """A new process for a worker that has grown too large: TensorFlow keeps every program that it compiled."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        if memory_bytes > WORKER_BYTES and known.get(worker, {}).get("nanny"):  # who would start it again
            log.info("a worker that has grown to %.1f GB is started anew", memory_bytes / 1e9)
            with suppress(TimeoutError):
                self.client.restart_workers([worker], timeout=WORKERLESS_SECONDS)

    def _fail(self, one: UnderWay, error: BaseException) -> None:
        self.search.fail(one.number)
        self._close(one, "FAILED", f"failed: {error}")
        self.failures.append(one.number)
        if len(self.failures) == FAILURES:
            for number in self.failures:
                self.search.queue_again(number)
            raise RuntimeError(f"{FAILURES} trials in a row failed, the last one so: {error}") from error

    def _set_aside(self, one: UnderWay) -> None:
        again = self.search.set_aside(one.number)
        what = "queued for the next call" if again else "given up, it does not fit into the time"
        self._close(one, "KILLED", f"{what}, after {len(one.history)} of {one.recipe.epochs} epochs")

    def _abandon(self) -> None:
        """What is under way when this ends early stops after its epoch."""
        for one in self.under_way.values():
            with suppress(OSError):  # the cluster may be what is gone
                one.replies.put((len(one.history), False))
            self._set_aside(one)

    def _close(self, one: UnderWay, status: str, outcome: str) -> None:
        """The end of the trial's run, and its line on the terminal."""
        from models.search import describe

        self._flush(one)
        self.registry.close_run(one.run_id, status, {"outcome": outcome[:5000]})
        log.info("trial %d: %s: %s", one.number, outcome, describe(one.recipe))


def _result(future: Any) -> Done | BaseException:
    """What the task returned or raised, or what Dask says of workers that died of it again and again."""
    dask: BaseException | None = future.wrapped_future.exception()
    result: Done | BaseException = dask or future.result(raise_on_failure=False)
    return result
