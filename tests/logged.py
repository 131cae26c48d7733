"""Answers made up for the prediction log, and the requests that were counted."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import Engine

from digits.storage import request_counts
from digits.storage.predictions import PredictionBatch, new_ids
from digits.storage.request_counts import Total
from services.prediction_log import PredictionLog

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def answers(count: int = 3, at: datetime = NOON, version: str = "1", seed: int = 0) -> PredictionBatch:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(10), count).astype(np.float32)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return PredictionBatch(new_ids(count), at, version, images, probabilities, "/classify", [f"writer {seed}"] * count)


def write(url: str, spool: Path, *batches: PredictionBatch, audit_sample_rate: float = 0.0) -> None:
    log = PredictionLog(url, spool, audit_sample_rate)
    for batch in batches:
        log.append(batch)
    log.close()


def counted(engine: Engine, since: datetime, until: datetime) -> list[Total]:
    """The requests of a period of one hour at most, by route and status."""
    return [total for _, total in request_counts.by_hour(engine, since, until)]
