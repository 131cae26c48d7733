"""`digits monitor --power`: the drift detector's detection and false-alarm rates at the size of the latest window."""

import logging
from datetime import UTC, datetime

import numpy as np

from digits.data import datasets
from digits.images import Split
from digits.reference import Reference
from digits.storage import predictions
from flows.monitor import MAX_ANSWERS
from models.connections import Platform
from monitoring.windows import parse_since

log = logging.getLogger("digits.detection_power")

DEFAULT_COUNT = 500  # where the window has too few answers for a verdict


def measure(since: str) -> tuple[int, list[tuple[str, str, str, str]]]:
    """The size of the latest window, and for each perturbation its name, description, detection rate and number of windows.

    They are measured at that size, on digits that the champion was not trained on.
    """
    from monitoring import detection_power, drift  # SciPy

    platform = Platform()
    champion = platform.models.fetch()
    test = datasets.load(platform.datasets, champion.card["dataset"]).test
    reference, held_out = hold_out(champion.reference, test)
    now = datetime.now(UTC)
    found = predictions.counts(platform.engine, parse_since(since, now), now).get(champion.version, 0)
    count = min(found, MAX_ANSWERS) if found >= drift.MIN_COUNT else DEFAULT_COUNT
    rates = detection_power.measure(reference, held_out.images, held_out.labels, champion.predict_proba, count)
    return count, [(one.perturbation, one.description, f"{one.rate:.1%}", str(one.windows)) for one in rates]


def hold_out(reference: Reference, test: Split) -> tuple[Reference, Split]:
    """The reference and test images that are not in it; where these are few, the two halves of the reference."""
    fresh = ~np.isin(datasets.digests(test.images), datasets.digests(reference.images))
    if fresh.sum() >= len(reference) / 2:
        return reference, Split(test.images[fresh], test.labels[fresh])
    half = len(reference) // 2
    log.info("most test images are in the reference; half of it is held out, so the rates shown are lower bounds")
    kept = reference.sample(half, seed=1)
    others = ~np.isin(datasets.digests(reference.images), datasets.digests(kept.images))
    return kept, Split(reference.images[others], reference.labels[others])
