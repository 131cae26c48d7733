"""`digits monitor --power`: the drift detector's detection and false-alarm rates at the size of the latest window."""

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
    from monitoring.detection_power import DetectionRate

log = logging.getLogger("digits.detection_power")

MIN_COUNT = 100  # with fewer predictions the detector gives no verdict
DEFAULT_COUNT = 500  # where the window has fewer


def measure(since: str, settings: Settings) -> "tuple[int, list[DetectionRate]]":
    """The size of the latest window and the detection rates at that size, on digits that the champion was not trained on."""
    from models.model_store import ModelStore
    from monitoring import detection_power

    store = ModelStore(settings.mlflow_tracking_uri, settings.champions)
    current = store.fetch()
    reference = store.reference(current)
    test = datasets.load(settings.datasets, current.card["dataset"]).test
    reference, held_out = hold_out(reference, test)
    count = _window_size(since, current.version, settings)
    return count, detection_power.measure(reference, held_out.images, held_out.labels, current.predict_proba, count)


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


def _window_size(since: str, version: str, settings: Settings) -> int:
    engine, now = database.connect(settings.database_url), datetime.now(UTC)
    found = predictions.counts(engine, begin(since, now), now).get(version, 0)
    return min(found, MAX_ANSWERS) if found >= MIN_COUNT else DEFAULT_COUNT
