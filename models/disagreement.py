"""Logged answers that the challenger would have given otherwise: their labels tell the two versions apart."""

import logging
from datetime import UTC, datetime, timedelta

import numpy as np

from digits.storage import label_queue, predictions
from models.challengers import ALIAS
from models.connections import Platform
from models.onnx_model import InferenceFailed, InvalidArtifact
from models.registry_reader import VersionNotFound

log = logging.getLogger("digits.disagreement")

AGE = timedelta(days=1)
MAX_ANSWERS = 2_000  # of the last day, drawn at random


def update(platform: Platform) -> int:
    """Replace the disagreements in the label queue by those of the present challenger. Returns their number; 0 without a challenger."""
    challenger = platform.models.registry.version(ALIAS)
    ids = _disputed(platform, challenger) if challenger else []
    label_queue.replace_disagreements(platform.engine, challenger or "", ids)
    return len(ids)


def _disputed(platform: Platform, challenger: str) -> list[str]:
    window = predictions.read_window(platform.engine, datetime.now(UTC) - AGE, limit=MAX_ANSWERS)
    if not len(window):
        return []
    try:
        answers = platform.models.fetch_version(challenger).predict_proba(window.images).argmax(axis=1)
    except (InferenceFailed, InvalidArtifact, VersionNotFound) as error:
        log.warning("the challenger's answers are not compared: %s", error)
        return []
    rows = np.flatnonzero((answers != window.digits) & (window.labels < 0))
    log.info("the challenger v%s disagrees with %d of %d answers of the last day", challenger, len(rows), len(window))
    return [window.ids[row] for row in rows]
