"""Checks the labels of a data set: reports those that are probably wrong, and queues them for an auditor at `/label`."""

import json
import logging
from typing import TYPE_CHECKING

from digits.data.datasets import Dataset
from digits.files import write_atomically
from digits.storage import suspected_labels
from models.connections import Platform

if TYPE_CHECKING:  # TensorFlow takes 11 s to import
    from models.label_issues import LabelIssues

log = logging.getLogger("digits.check_labels")

METRIC = "suspected_labels"


def check_labels(platform: Platform, dataset: Dataset) -> "LabelIssues | None":
    """Find the suspected labels of a data set, write their pictures, and queue them; None where they cannot be judged.

    The test images are not checked: what versions are compared on stays as it is.
    """
    from models import figures, label_issues

    found = label_issues.find(dataset)
    if found is None:
        return None
    waiting = suspected_labels.replace(platform.engine, dataset.fingerprint, found.suspects())
    log.info("%s: %s", dataset.source, found.message)
    if len(found):
        path = platform.settings.home / "label_issues" / f"{dataset.fingerprint}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path, figures.png(figures.suspected(found.images, found.labels, found.predicted, found.probabilities))
        )
        log.info(
            "%d of them wait for an auditor at %s/label, pictures: %s", waiting, platform.settings.service_url, path
        )
    return found


def log_on_run(platform: Platform, found: "LabelIssues | None") -> None:
    """Show the suspected labels on the MLflow run of the last training."""
    if found is None:
        return
    from models import figures

    files = {"suspected_labels.json": json.dumps(found.as_json(), indent=2)}
    pictures = (
        {
            "figures/suspected_labels.png": figures.suspected(
                found.images, found.labels, found.predicted, found.probabilities
            )
        }
        if len(found)
        else {}
    )
    platform.registry.log_results({METRIC: float(len(found))}, {}, {**files, **pictures})
