"""`digits ingest`: from a source to a stored data set, checked on the way in."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from digits import datasets, sources
from digits.settings import Settings, settings


@flow(name="ingest")
def ingest(data: str = "mnist") -> str:
    """Read, check and store SOURCE, and let the next retraining start from it; the fingerprint of the data set."""
    where = settings()
    fingerprint = store(data, where)
    datasets.set_current(where.datasets, fingerprint)
    return fingerprint


@task(cache_policy=NO_CACHE)
def store(data: str, where: Settings) -> str:
    """The source under `var/datasets/<fingerprint>`; the fingerprint."""
    dataset = sources.read(data, mnist=where.mnist, cache=where.downloads)
    return datasets.save(dataset, where.datasets).name
