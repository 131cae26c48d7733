"""Cost of a prediction in the prediction log: `python -m bench.storage [--url postgresql://…] [--count 100000] [--batch 1000]`."""

import argparse
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import text

from digits.storage import database, predictions
from digits.storage.predictions import PredictionBatch, new_ids
from services.prediction_log import PredictionLog


def main() -> None:
    """Write predictions through the log into an empty database, read a window, delete them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--url", help="An empty database, where PostgreSQL is wanted; SQLite in a temporary folder unless set."
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument(
        "--batch", type=int, default=1000, help="Predictions in a batch; single images come in batches of 4."
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.url or f"sqlite:///{folder}/digits.db", Path(folder), arguments.count, arguments.batch)


def measure(url: str, folder: Path, count: int, per_batch: int) -> None:
    """Print predictions written per second, bytes of each, and the time to read a window."""
    engine = database.connect(url)
    before = _size(url)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (per_batch, 28, 28), np.uint8)
    probabilities = random.dirichlet(np.ones(10), per_batch).astype(np.float32)
    log = PredictionLog(url, folder / "spool", audit_sample_rate=0.02, limit=2 * count)
    began = time.perf_counter()
    for _ in range(0, count, per_batch):
        log.append(PredictionBatch(new_ids(per_batch), datetime.now(UTC), "1", images, probabilities, "/classify_bulk"))
    assert log.flush(600), "the log was not written within 600 s"
    seconds = time.perf_counter() - began
    log.close()
    print(f"{engine.dialect.name}: {count / seconds:,.0f} predictions/s written, one process, {per_batch:,} in a batch")
    print(f"{(_size(url) - before) / count:,.0f} bytes a prediction, with its indexes")
    began = time.perf_counter()
    window = predictions.read_window(engine, datetime.now(UTC) - timedelta(hours=1), limit=10_000)
    print(f"a window of {len(window):,} predictions among {count:,} read in {time.perf_counter() - began:.2f} s")
    began = time.perf_counter()
    removed = predictions.delete_before(engine, datetime.now(UTC) + timedelta(hours=1))
    print(f"{removed / (time.perf_counter() - began):,.0f} predictions/s deleted")
    engine.dispose()


def _size(url: str) -> int:
    """Bytes on disk."""
    engine = database.connect(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
            return int(
                connection.scalar(text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"))
            )
        return int(connection.scalar(text("SELECT pg_total_relation_size('prediction_batches')")))


if __name__ == "__main__":
    main()
