"""`digits ingest`: from a source to a stored data set, checked on the way in."""

import logging

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from digits.data import datasets, inbox, sources
from digits.images import Split
from digits.settings import Settings, load_settings
from digits.storage import database, feedback

log = logging.getLogger("digits.ingest")

VALIDATION_SHARE = 0.1  # of the images that the inbox and feedback bring


@flow(name="ingest")
def ingest(data: str = "mnist") -> str:
    """Read, check and store SOURCE, and let the next retraining start from it; the fingerprint of the data set."""
    return start_from(data, load_settings())


@task(cache_policy=NO_CACHE)
def start_from(data: str, settings: Settings) -> str:
    """The source and all that the inbox ever brought, as the data set that retraining starts from; its fingerprint."""
    fingerprint = store.fn(data, settings)
    before = inbox.read_inbox(settings.inbox / "taken")
    fingerprint = extended(fingerprint, before.labelled, ", ".join(before.names), settings)
    datasets.set_current(settings.datasets, fingerprint)
    return fingerprint


def with_feedback(fingerprint: str, settings: Settings) -> str:
    """The stored data set with the labels of feedback as they are now; its fingerprint.

    They are never part of the data set that retraining starts from: a label that is corrected leaves with its correction.
    """
    return extended(fingerprint, feedback.training(database.connect(settings.database_url)), "feedback", settings)


def extended(fingerprint: str, labelled: Split | None, source: str, settings: Settings) -> str:
    """The stored data set with more labelled images in its training part; its fingerprint."""
    if labelled is None:
        return fingerprint
    before = datasets.load(settings.datasets, fingerprint)
    after = datasets.extend(before, labelled, validation_fraction=VALIDATION_SHARE, seed=0)
    added = len(after.train) + len(after.validation) - len(before.train) - len(before.validation)
    log.info("took in %d labelled images, %d of them new, from %s", len(labelled), added, source)
    return datasets.save(after, settings.datasets).name


@task(cache_policy=NO_CACHE)
def store(data: str | None, settings: Settings) -> str:
    """The source under `var/datasets/<fingerprint>`, or the current data set and feedback where none is named; the fingerprint."""
    if data is None and (current := datasets.current(settings.datasets)):
        return with_feedback(current, settings)
    dataset = sources.read(data or "mnist", mnist=settings.mnist, cache=settings.downloads)
    return datasets.save(dataset, settings.datasets).name
