"""`digits sweep`: searches recipes in parallel on Dask workers under a time budget and registers the best as challenger."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna import Study
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
from models import search
from models.provenance import git_commit
from models.registry import RegistryWriter

log = logging.getLogger("digits.sweep")

LEADERBOARD_SIZE = 5
DEFAULT_PLAN = SweepPlan()


@flow(name="sweep")
def sweep(plan: SweepPlan = DEFAULT_PLAN) -> str:
    """Run trials until the time is up, then train the best recipe as `digits train` does; the version of the challenger.

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
            message = f"the sweep {study.study_name} is running; wait for its end or choose another --name"
            raise RuntimeError(message) from error
        yield


@contextmanager
def parent_run(registry: RegistryWriter, study: Study, dataset: Dataset) -> Iterator[str]:
    """The MLflow run around all trials of the study, reopened if an earlier call has made one; its id."""
    if n_running := search.retry_running(study):
        log.info("queued %d trials again that were running when the last call was killed", n_running)
    run_id: str | None = study.user_attrs.get("run")
    if run_id is None or not registry.reopen_run(run_id):
        tags = {"dataset": dataset.fingerprint, "study": study.study_name, **git_commit(), **prefect_run()}
        run_id = registry.open_run(study.study_name, tags)
        study.set_user_attr("run", run_id)
    try:
        yield run_id
    except BaseException as error:  # an interrupt, too
        registry.close_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {})
        raise
    registry.close_run(run_id, "FINISHED", {})


def publish_trials(study: Study, n_images: int) -> None:
    """Log the best trials and show them as an artifact; `n_images` is the number of validation images."""
    started = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    complete = search.ranked(study)
    log.info("%d trials so far, %d of them complete", len(started), len(complete))
    table = "| trial | validation accuracy | seconds | recipe |\n|---|---|---|---|\n"
    for trial in complete[:LEADERBOARD_SIZE]:
        accuracy = intervals.wilson(round(trial.values[0] * n_images), n_images)
        summary = search.summarize(search.recipe_of(trial))
        log.info("  trial %d: %s %s", trial.number, accuracy, summary)
        table += f"| {trial.number} | {accuracy} | {trial.user_attrs['train_seconds']:.1f} | {summary} |\n"
    publish("sweep", study.study_name, f"# {study.study_name}\n\n{table}")


def register_best(platform: Platform, study: Study, dataset: Dataset, parent: str) -> str:
    """The version of the best recipe, trained now unless it has one already, with the alias `challenger`."""
    complete = search.ranked(study)
    if not complete:
        raise RuntimeError(f"no trial of {study.study_name} is complete; repeat the command with more --minutes")
    recipe = search.recipe_of(complete[0])
    version = platform.registry.trained_before(dataset.fingerprint, recipe)
    if version is None:
        tags = {"mlflow.parentRunId": parent, "trial": str(complete[0].number)}
        version = train_on(platform, dataset, recipe, tags)
    if version != platform.models.registry.version():
        platform.registry.set_alias("challenger", version)
    return version
