"""`digits ingest`: from a source to a stored data set, checked on the way in."""

import logging

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from digits import datasets, inbox, sources
from digits.inbox import Taken
from digits.settings import Settings, settings

log = logging.getLogger("digits.ingest")

VALIDATION_SHARE = 0.1  # of the images that the inbox brings


@flow(name="ingest")
def ingest(data: str = "mnist") -> str:
    """Read, check and store SOURCE, and let the next retraining start from it; the fingerprint of the data set."""
    return start_from(data, settings())


@task(cache_policy=NO_CACHE)
def start_from(data: str, where: Settings) -> str:
    """The source and all that the inbox ever brought, as the data set that retraining starts from; its fingerprint."""
    fingerprint = extended(store.fn(data, where), inbox.read_inbox(where.inbox / "taken"), where)
    datasets.set_current(where.datasets, fingerprint)
    return fingerprint


def extended(fingerprint: str, taken: Taken, where: Settings) -> str:
    """The stored data set with labelled images of the inbox in its training part; its fingerprint."""
    if taken.labelled is None:
        return fingerprint
    before = datasets.load(where.datasets, fingerprint)
    after = datasets.extend(before, taken.labelled, validation_fraction=VALIDATION_SHARE, seed=0)
    added = len(after.train) + len(after.validation) - len(before.train) - len(before.validation)
    log.info("took in %d labelled images, %d of them new, from %s", len(taken.labelled), added, ", ".join(taken.names))
    return datasets.save(after, where.datasets).name


@task(cache_policy=NO_CACHE)
def store(data: str, where: Settings) -> str:
    """The source under `var/datasets/<fingerprint>`; the fingerprint."""
    dataset = sources.read(data, mnist=where.mnist, cache=where.downloads)
    return datasets.save(dataset, where.datasets).name
