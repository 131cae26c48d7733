"""`digits sweep`: recipes tried under a time budget, side by side on a Dask cluster, the best registered as challenger."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from digits import intervals
from digits.data import datasets
from digits.data.datasets import Dataset
from flows import sweep_executor
from flows.connections import Platform
from flows.ingest import load_dataset
from flows.sweep_executor import Plan
from flows.tasks import server_task
from flows.train import prefect_run, train_on

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s, Optuna 1 s
    from models.registry import Registry
    from models.search import Search

log = logging.getLogger("digits.sweep")

BEST = 5  # lines of the leaderboard
USUAL = Plan()


class Busy(RuntimeError):
    """The same sweep is under way elsewhere."""


class NothingFinished(RuntimeError):
    """No trial came to its end."""


@flow(name="sweep")
def sweep(plan: Plan = USUAL) -> str:
    """Try recipes until the time is up, then train the best one as `digits train` does; the version of the challenger.

    A sweep with the same name, data and number of epochs goes on where the last one ended or was killed.
    """
    from models.search import Search

    platform = Platform()
    settings, registry = platform.settings, platform.registry
    dataset = server_task(load_dataset)(platform, plan.data)
    fingerprint = dataset.fingerprint
    search = Search(settings.sweeps, plan.name, fingerprint, plan.epochs)
    with only_one(settings.sweeps, search.title), parent_run(registry, search, fingerprint) as parent:
        try:
            sweep_executor.run(plan, fingerprint, parent)
        finally:
            publish(search, datasets.manifest(settings.datasets, fingerprint)["images"]["validation"])
        return register_best(platform, search, dataset, parent)


@contextmanager
def only_one(folder: Path, title: str) -> Iterator[None]:
    """Hold the study's lock, which ends with this process however it ends; raises Busy at once."""
    with (folder / f"{title}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"the sweep {title} is under way; wait for its end or choose another --name") from error
        yield


@contextmanager
def parent_run(registry: "Registry", search: "Search", fingerprint: str) -> Iterator[str]:
    """The MLflow run around all trials of the study, that of the last call where there was one; its id."""
    from models.registry import git_commit

    left = search.take_up()
    if left:
        log.info("queued %d trials again that were under way when the last call was killed", left)
    run_id: str | None = search.attribute("run")
    if run_id is None or not registry.reopen_run(run_id):
        tags = {"dataset": fingerprint, "study": search.title, **git_commit(), **prefect_run()}
        run_id = registry.open_run(f"sweep {search.name}", tags)
        search.set_attribute("run", run_id)
    try:
        yield run_id
    except BaseException as error:  # an interrupt, too
        registry.close_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {})
        raise
    registry.close_run(run_id, "FINISHED", {})


def publish(search: "Search", images: int) -> None:
    """The best five trials, in lines and on the page of the Prefect run; `images` is the number of validation images."""
    from models.search import describe

    results = search.results()
    log.info("%d trials so far, %d of them to their end", search.begun(), len(results))
    table = "| trial | validation accuracy | seconds | recipe |\n|---|---|---|---|\n"
    for one in results[:BEST]:
        accuracy = intervals.wilson(round(one.accuracy * images), images)
        log.info("  trial %d: %s %s", one.number, accuracy, describe(one.recipe))
        table += f"| {one.number} | {accuracy} | {one.seconds:.1f} | {describe(one.recipe)} |\n"
    create_markdown_artifact(f"# {search.title}\n\n{table}", key="sweep", description=f"sweep {search.name}")


def register_best(platform: Platform, search: "Search", dataset: Dataset, parent: str) -> str:
    """The version of the best recipe, trained now unless it has one already, with the alias `challenger`."""
    results = search.results()
    if not results:
        raise NothingFinished(
            f"no trial of {search.name!r} came to its end; its recipes are queued: "
            f"go on with `digits sweep --name {search.name}` and more minutes"
        )
    best = results[0]
    version = platform.registry.trained_before(dataset.fingerprint, best.recipe)
    if version is None:
        version = train_on(platform, dataset, best.recipe, {"mlflow.parentRunId": parent, "trial": str(best.number)})
    if version != platform.models.registry.version():
        platform.registry.point("challenger", version)
    return version
