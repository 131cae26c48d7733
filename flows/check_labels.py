"""Checks the labels of a data set: reports those that are probably wrong, and queues them for an auditor at `/label`.

It takes one to three minutes for MNIST and decides nothing, so retrainings leave it to a run of its own.
"""

import base64
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.files import write_atomically
from digits.storage import suspected_labels
from flows.tasks import publish, server_task
from models.connections import Platform

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, Matplotlib 1 s
    from matplotlib.figure import Figure

    from models.label_issues import LabelIssues

log = logging.getLogger("digits.check_labels")

DEPLOYMENT, METRIC = "Check labels", "suspected_labels"


@flow(name="check-labels")
def check_labels(dataset: str, run: str = "", since: datetime | None = None) -> str:
    """Queue the images of the data set with this fingerprint whose label is probably wrong. Returns how many there are in a sentence.

    They are also shown on the MLflow run of the training with this version or run id. `since` is when the data set became the one
    to train on, by default now: of two, the later one decides what is in the queue, whichever check ends first.
    """
    platform = Platform()
    found = server_task(check)(platform, server_task(datasets.load)(platform.datasets, dataset), since)
    if found is None:
        return f"the labels of data set {dataset} cannot be judged: too few images, or too many that small networks read otherwise"
    if run:
        server_task(log_on_run)(platform, found, run)
    show(platform, dataset, found)
    return found.message


def hand_over(platform: Platform, dataset: str, since: datetime, run: str = "") -> None:
    """Have the labels of a stored data set checked by the deployed flow, and where there is none, here in a flow of its own.

    `since` is when it became the data set to train on. A check that fails is no error here.
    """
    try:
        _hand_over(platform, dataset, since, run)
    # What it follows, a promotion perhaps, has succeeded.
    except Exception as error:
        log.warning("the labels of data set %s are not checked: %s", dataset, error)


def _hand_over(platform: Platform, dataset: str, since: datetime, run: str) -> None:
    from models import label_issues

    images = datasets.manifest(platform.datasets, dataset)["images"]
    if not label_issues.are_enough(images["train"] + images["validation"]):
        # Those of an earlier data set are no longer asked about.
        suspected_labels.replace(platform.engine, dataset, [], since)
    elif page := _start({"dataset": dataset, "run": run, "since": since}):
        log.info("the labels of data set %s are checked in the background: %s", dataset, page)
    else:
        state = check_labels(dataset, run, since, return_state=True)
        if not state.is_completed():
            log.warning("the labels of data set %s are not checked: %s", dataset, state.message)


def _start(parameters: dict[str, Any]) -> str | None:
    """Create a run of the deployed flow. Returns the address of its page; None where the flow is not deployed."""
    try:
        run: Any = run_deployment(
            f"{check_labels.name}/{DEPLOYMENT}",
            parameters=parameters,
            flow_run_name=f"Labels of data set {parameters['dataset']}",
            timeout=0,
            as_subflow=False,
        )
    except ObjectNotFound:
        return None
    return url_for("flow-run", obj_id=run.id) or str(run.id)


def check(platform: Platform, dataset: Dataset, since: datetime | None = None) -> "LabelIssues | None":
    """Find the suspected labels of a data set, write their pictures, and queue them; None where they cannot be judged.

    `since` is as in `check_labels`. The test images are not checked: what versions are compared on stays as it is.
    """
    from models import figures

    path = file_of(platform, dataset.fingerprint)
    found = find(path, dataset)
    suspects = found.suspects() if found else []
    waiting = suspected_labels.replace(platform.engine, dataset.fingerprint, suspects, since)
    if found is None:
        return None
    log.info("%s: %s", dataset.source, found.message)
    if waiting is None:
        log.info("the queue keeps those of a later data set")
    else:
        log.info("%d of them wait for an auditor at %s/label", waiting, platform.settings.service_url)
    if len(found):
        pictures = path.with_suffix(".png")
        write_atomically(pictures, figures.png(_figure(found)))
        log.info("their pictures: %s", pictures)
    return found


def find(path: Path, dataset: Dataset) -> "LabelIssues | None":
    """The suspected labels as this file has them from an earlier check of the same data set, otherwise by a new one."""
    from models import label_issues

    inputs = label_issues.inputs_hash(dataset.fingerprint)
    if path.exists() and (known := json.loads(path.read_bytes()))["inputs"] == inputs:
        return label_issues.from_json(dataset, known)
    found = label_issues.find(dataset)
    if found is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"inputs": inputs, **found.as_json()}, indent=2).encode())
    return found


def file_of(platform: Platform, dataset: str) -> Path:
    """The file with the suspected labels of the data set with this fingerprint; their pictures lie beside it."""
    return platform.settings.home / "label_issues" / f"{dataset}.json"


def log_on_run(platform: Platform, found: "LabelIssues", run: str) -> None:
    """Show the suspected labels on the MLflow run of a training."""
    from models import runs

    run_id = runs.find(platform.registry, run).id
    files = {"suspected_labels.json": json.dumps(found.as_json(), indent=2)}
    pictures = {"figures/suspected_labels.png": _figure(found)} if len(found) else {}
    platform.registry.log_files(run_id, {**files, **pictures})
    platform.registry.log_points(run_id, [(0, {METRIC: float(len(found))})])


def show(platform: Platform, dataset: str, found: "LabelIssues") -> None:
    """Show the suspected labels on the page of the flow run."""
    png, path = None, file_of(platform, dataset).with_suffix(".png")
    # Embedded, because the Prefect UI cannot read files of this machine.
    if len(found):
        png = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    links = {"label": ("decide on them", f"{platform.settings.service_url}/label")}
    publish("labels", f"data set {dataset}", f"# Labels of data set {dataset}\n\n{found.message}.\n", png, links=links)


def _figure(found: "LabelIssues") -> "Figure":
    from models import figures

    return figures.suspected(found.images, found.labels, found.predicted, found.probabilities)
