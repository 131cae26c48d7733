"""Answers made up for the prediction log, and the requests that were counted."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from digits.storage import request_counts
from digits.storage.predictions import PredictionBatch, new_ids
from digits.storage.request_counts import Total
from services.prediction_log import PredictionLog

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
# Fields of two answers that no service logs; a file can hold a record of them with a valid checksum.
WRONG: dict[str, dict[str, Any]] = {
    "ids of other digits": {"ids": ["zz" * 16] * 2},
    "short ids": {"ids": ["aa", "bb"]},
    "numbers as ids": {"ids": [5, 6]},
    "a text as ids": {"ids": "ab"},
    "no ids": {"ids": None},
    "one id twice": {"ids": ["ab" * 16] * 2},
    "an id too many": {"ids": new_ids(3), "clients": []},
    "a time without a zone": {"at": NOON.replace(tzinfo=None)},
    "a time that is no UTC time": {"at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))},
    "the last year": {"at": datetime(9999, 12, 31, tzinfo=UTC)},
    "a number as time": {"at": 5},
    "an object as version": {"version": {"a": 1}},
    "no version": {"version": None},
    "a long version": {"version": "1" * 33},
    "no route": {"route": None},
    "a NUL in a route": {"route": "/clas\0sify"},
    "no list of clients": {"clients": None},
    "a number as clients": {"clients": 5},
    "an object as clients": {"clients": {"a": 1, "b": 2}},
    "a client too few": {"clients": ["a"]},
    "lists as clients": {"clients": [[1], [2]]},
    "an escape sequence": {"clients": ["\x1b[31m", ""]},
    "a long client": {"clients": ["a" * 65, ""]},
    "an image too few": {"images": np.zeros((1, 28, 28), np.uint8)},
    "a place too few": {"places": [(0, 1, 2, 3, 4)]},
    "a place that is none": {"places": [(0, 1, 2, 3), (0, 1, 2, 3)]},
    "a place before the picture": {"places": [(0, -1, 2, 3, 4)] * 2},
    "a score too few": {"digit_scores": np.zeros(1, np.float32)},
    "infinite probabilities": {"probabilities": np.full((2, 10), np.inf, np.float32)},
    "no numbers": {"probabilities": np.full((2, 10), np.nan, np.float32)},
    "negative probabilities": {"probabilities": np.full((2, 10), -0.1, np.float32)},
}


def answers(count: int = 3, at: datetime = NOON, version: str = "1", seed: int = 0) -> PredictionBatch:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(10), count).astype(np.float32)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    clients, scores = [f"writer {seed}"] * count, random.normal(5, 2, count).astype(np.float32)
    return PredictionBatch(new_ids(count), at, version, images, probabilities, "/classify", clients, scores)


def write(url: str, spool: Path, *batches: PredictionBatch, audit_sample_rate: float = 0.0) -> None:
    log = PredictionLog(url, spool, audit_sample_rate)
    for batch in batches:
        log.append(batch)
    log.close()


def counted(engine: Engine, since: datetime, until: datetime) -> list[Total]:
    """The requests of a period of one hour at most, by route and status."""
    return [total for _, total in request_counts.by_hour(engine, since, until)]
