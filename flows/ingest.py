"""`digits ingest`: from a source to a stored data set, checked on the way in."""

import logging
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from prefect import flow

from digits.data import datasets, inbox, near_duplicates, sources
from digits.data.datasets import BadData, Dataset
from digits.images import PredictProba, Split
from digits.storage import feedback, suspected_labels
from flows import check_labels
from flows.tasks import server_task
from models.connections import Platform

log = logging.getLogger("digits.ingest")


@flow(name="ingest")
def ingest(data: str = "mnist") -> str:
    """Read, check and store SOURCE, and let the next retraining start from it. Returns the fingerprint of the data set."""
    platform = Platform()
    fingerprint = server_task(set_source)(platform, data)
    check_labels.hand_over(platform, fingerprint, datetime.now(UTC))
    return fingerprint


def set_source(platform: Platform, data: str) -> str:
    """Store the source as the data set that the next retraining starts from. Returns its fingerprint."""
    dataset = read_source(platform, data)
    datasets.save(dataset, platform.datasets)
    datasets.set_current(platform.datasets, dataset.fingerprint)
    return dataset.fingerprint


def load_dataset(platform: Platform, data: str | None) -> Dataset:
    """Store and return the source, or where none is named the current data set with the labels of feedback."""
    current = datasets.current(platform.datasets)
    if data is None and current:
        dataset = with_feedback(platform, datasets.load(platform.datasets, current))
    else:
        dataset = _read(platform, data or "mnist")
    datasets.save(dataset, platform.datasets)
    return dataset


def read_source(platform: Platform, data: str) -> Dataset:
    """The source together with everything that the inbox has brought so far; not stored."""
    settings = platform.settings
    archived = inbox.read_taken(settings.inbox, settings.source_limit_bytes)
    return extend(_read(platform, data), archived.labelled, archived.source)


def _read(platform: Platform, data: str) -> Dataset:
    """The source, with the number of its near-duplicates; not stored."""
    settings = platform.settings
    limit = settings.source_limit_bytes
    dataset = sources.read(data, mnist=settings.mnist, cache=settings.downloads, limit_bytes=limit)
    return replace(dataset, near_duplicates=_near_duplicates(platform, dataset))


def _near_duplicates(platform: Platform, dataset: Dataset) -> int:
    """The number of the manifest where the data set is stored already, and otherwise a new count."""
    with suppress(BadData):
        known = datasets.manifest(platform.datasets, dataset.fingerprint).get("near_duplicates")
        if known is not None:
            return int(known)
    found = near_duplicates.count(dataset)
    log.info("%s: %d of %d test images nearly equal one for training", dataset.source, found, len(dataset.test))
    return found


def champion_predictions(platform: Platform) -> PredictProba | None:
    """The champion's predictions, which new labels are compared with; None where there is none or the registry does not answer."""
    from models.onnx_model import InvalidArtifact
    from models.registry_reader import RegistryUnreachable, VersionNotFound

    try:
        version = platform.models.registry.version()
        return platform.models.fetch_version(version).predict_proba if version else None
    except (InvalidArtifact, RegistryUnreachable, VersionNotFound) as error:
        log.warning("new labels are not compared with the champion: %s", error)
        return None


def with_feedback(platform: Platform, dataset: Dataset) -> Dataset:
    """The data set with the labels of feedback, and auditors' corrections, as they are now; not stored.

    These labels never become part of the data set that retraining starts from, so that a corrected label is replaced.
    """
    return _corrected(platform, extend(dataset, feedback.training(platform.engine), "feedback"))


def _corrected(platform: Platform, dataset: Dataset) -> Dataset:
    corrections = suspected_labels.corrections(platform.engine)
    corrected = datasets.correct(dataset, corrections) if corrections else dataset
    if corrected is not dataset:
        left_out = len(dataset.train) + len(dataset.validation) - len(corrected.train) - len(corrected.validation)
        log.info("corrected labels as auditors decided; left out %d images without a digit", left_out)
    return corrected


def extend(dataset: Dataset, labelled: Split | None, source: str) -> Dataset:
    """The data set with more labelled images in train and validation; not stored."""
    if labelled is None:
        return dataset
    extended = datasets.extend(dataset, labelled, validation_fraction=0.1, seed=0)
    added = len(extended.train) + len(extended.validation) - len(dataset.train) - len(dataset.validation)
    log.info("read %d labelled images, %d of them new, from %s", len(labelled), added, source)
    return extended
