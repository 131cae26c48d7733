"""`digits sweep`: searches recipes in parallel on Dask workers under a time budget and registers the best as challenger."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState
from prefect import flow

from digits import intervals
from digits.data.datasets import Dataset
from flows import dask_cluster
from flows.connections import Platform
from flows.ingest import load_dataset
from flows.sweep_executor import SweepExecutor, SweepPlan
from flows.tasks import publish, server_task
from flows.train import prefect_run, train_on

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s, Optuna 1 s
    from optuna import Study

    from models.registry import RegistryWriter

log = logging.getLogger("digits.sweep")

LEADERBOARD_SIZE = 5
DEFAULT_PLAN = SweepPlan()


class StudyLocked(RuntimeError):
    """Another process works on the study."""


class NoCompleteTrial(RuntimeError):
    """The study has no best trial."""


@flow(name="sweep")
def sweep(plan: SweepPlan = DEFAULT_PLAN) -> str:
    """Run trials until the time is up, then train the best recipe as `digits train` does; the version of the challenger.

    A sweep with the same name, data and number of epochs resumes the study of the last one, even if that was killed.
    """
    from models.search import open_study

    platform = Platform()
    folder, dataset = platform.settings.sweeps, server_task(load_dataset)(platform, plan.data)
    study = open_study(folder, plan.name, dataset.fingerprint, plan.epochs)
    with (
        study_lock(folder, study.study_name),
        parent_run(platform.registry, study, plan, dataset.fingerprint) as run_id,
    ):
        try:
            if plan.minutes:
                with dask_cluster.connect(platform.settings.dask_address, plan.workers) as client:
                    SweepExecutor(plan, study, dataset.fingerprint, run_id, client).run()
        finally:
            publish_trials(study, len(dataset.validation))
        return register_best(platform, study, plan, dataset, run_id)


@contextmanager
def study_lock(folder: Path, study_name: str) -> Iterator[None]:
    """Hold the study's lock, which the kernel releases with the process; raises StudyLocked if another process has it."""
    with (folder / f"{study_name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyLocked(
                f"the sweep {study_name} is running; wait for its end or choose another --name"
            ) from error
        yield


@contextmanager
def parent_run(registry: "RegistryWriter", study: "Study", plan: SweepPlan, fingerprint: str) -> Iterator[str]:
    """The MLflow run around all trials of the study, reopened where the last call has left one; its id."""
    from models.provenance import git_commit
    from models.search import retry_running

    if n_running := retry_running(study):
        log.info("queued %d trials again that were running when the last call was killed", n_running)
    run_id: str | None = study.user_attrs.get("run")
    if run_id is None or not registry.reopen_run(run_id):
        tags = {"dataset": fingerprint, "study": study.study_name, **git_commit(), **prefect_run()}
        run_id = registry.open_run(f"sweep {plan.name}", tags)
        study.set_user_attr("run", run_id)
    try:
        yield run_id
    except BaseException as error:  # an interrupt, too
        registry.close_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {})
        raise
    registry.close_run(run_id, "FINISHED", {})


def publish_trials(study: "Study", n_images: int) -> None:
    """Log the best trials and show them as an artifact; `n_images` is the number of validation images."""
    from models.search import ranked, recipe_of, summarize

    started = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    complete = ranked(study)
    log.info("%d trials so far, %d of them complete", len(started), len(complete))
    table = "| trial | validation accuracy | seconds | recipe |\n|---|---|---|---|\n"
    for trial in complete[:LEADERBOARD_SIZE]:
        accuracy = intervals.wilson(round(trial.values[0] * n_images), n_images)
        summary = summarize(recipe_of(trial))
        log.info("  trial %d: %s %s", trial.number, accuracy, summary)
        table += f"| {trial.number} | {accuracy} | {trial.user_attrs['train_seconds']:.1f} | {summary} |\n"
    publish("sweep", study.study_name, f"# {study.study_name}\n\n{table}")


def register_best(platform: Platform, study: "Study", plan: SweepPlan, dataset: Dataset, parent: str) -> str:
    """The version of the best recipe, trained now unless it has one already, with the alias `challenger`."""
    from models.search import ranked, recipe_of

    complete = ranked(study)
    if not complete:
        raise NoCompleteTrial(
            f"no trial of {plan.name!r} is complete; its recipes are queued: "
            f"resume with `digits sweep --name {plan.name}` and more minutes"
        )
    recipe = recipe_of(complete[0])
    version = platform.registry.trained_before(dataset.fingerprint, recipe)
    if version is None:
        tags = {"mlflow.parentRunId": parent, "trial": str(complete[0].number)}
        version = train_on(platform, dataset, recipe, tags)
    if version != platform.models.registry.version():
        platform.registry.set_alias("challenger", version)
    return version
