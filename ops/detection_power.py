"""`digits monitor --power`: what the detector, as it is set, would catch in the traffic of the champion, and how often it cries wolf."""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from digits.data import datasets
from digits.images import Split
from digits.reference import Reference
from digits.settings import Settings
from digits.storage import database, predictions
from flows.monitor import MAX_ANSWERS
from monitoring.windows import begin

if TYPE_CHECKING:  # SciPy and ONNX Runtime
    from monitoring.detection_power import Power

log = logging.getLogger("digits.power")

LEAST = 100  # answers that the detector judges at all
USUAL = 500  # where the window has fewer


def measure(since: str, settings: Settings) -> "tuple[int, list[Power]]":
    """The size of the latest window and the detector's power at that size, on digits that the champion did not train on."""
    from models.model_store import ModelStore
    from monitoring import detection_power

    store = ModelStore(settings.mlflow_tracking_uri, settings.champions)
    current = store.fetch()
    reference = store.reference(current)
    test = datasets.load(settings.datasets, current.card["dataset"]).test
    reference, held_out = apart(reference, test)
    count = _window_size(since, current.version, settings)
    return count, detection_power.measure(reference, held_out.images, held_out.labels, current.predict_proba, count)


def apart(reference: Reference, test: Split) -> tuple[Reference, Split]:
    """The reference and test images that are not in it; of a small data set half of the reference, and the other half."""
    fresh = ~np.isin(datasets.digests(test.images), datasets.digests(reference.images))
    if fresh.sum() >= len(reference) / 2:
        return reference, Split(test.images[fresh], test.labels[fresh])
    half = len(reference) // 2
    log.info("all test images are in the reference: half of it is held out, so the power shown is a lower bound")
    kept = reference.sample(half, seed=1)
    others = ~np.isin(datasets.digests(reference.images), datasets.digests(kept.images))
    return kept, Split(reference.images[others], reference.labels[others])


def _window_size(since: str, version: str, settings: Settings) -> int:
    engine = database.connect(settings.database_url)
    found = predictions.count(engine, begin(since, datetime.now(UTC)), version)
    return min(found, MAX_ANSWERS) if found >= LEAST else USUAL
