"""The service's prediction log: a prediction is on disk before it is answered, and in the database soon after."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from sqlalchemy import Engine, Row

from digits.errors import first_line
from digits.images import PIXELS, SIZE
from digits.storage import database, predictions
from digits.storage.predictions import PredictionBatch, UnknownPrediction
from services import write_ahead_log
from services.write_ahead_log import WriteAheadLog

log = logging.getLogger("digits.storage.predictions")

T = TypeVar("T")
# Predictions written in one transaction.
BATCH_SIZE = 2000
UNREACHABLE = "the database of the prediction log is unreachable; send this again later"


class LogUnavailable(ConnectionError):
    """The database of the prediction log is unreachable."""


class PredictionLog:
    """Appending takes microseconds; a thread writes to the database in batches.

    Every prediction is in the write-ahead log before it is answered, and in memory until the database has it. While the database is
    unreachable, segments of the write-ahead log are sealed and the memory is freed; when it returns, they and the segments of killed
    processes are written to it, each prediction once. What the disk does not accept stays in memory; above `limit`, `append` refuses.
    """

    def __init__(
        self,
        url: str,
        spool: Path,
        audit_sample_rate: float = 0.0,
        retention: timedelta | None = None,
        limit: int = 20_000,
        interval_seconds: float = 0.2,
        retry_seconds: float = 2.0,
    ) -> None:
        self.spool = spool
        self.lost = 0
        self._url, self._audit_sample_rate, self._retention, self._limit = url, audit_sample_rate, retention, limit
        self._interval_seconds, self._retry_seconds = interval_seconds, retry_seconds
        self._lock = threading.Lock()
        self._waiting: deque[PredictionBatch] = deque()
        self._wal = WriteAheadLog(spool)
        self._wal.rotate(0)
        # Numbers of predictions since the start: appended; in the database or a sealed segment; and to be so at once.
        self._appended = self._durable = self._flush_target = 0
        self._engine: Engine | None = None
        self._retry_at = 0.0
        self._is_disk_full = False
        self._delete_at = 0.0
        self._wake, self._closing = threading.Event(), False
        self._progress = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Predictions that wait to be written."""
        return self._appended - self._durable

    @property
    def spooled(self) -> int:
        """Batches on disk that wait for the database."""
        return write_ahead_log.count_sealed(self.spool)

    @property
    def engine(self) -> Engine | None:
        """The database, or None while it is unreachable."""
        return self._engine if time.monotonic() >= self._retry_at else None

    def append(self, batch: PredictionBatch) -> bool:
        """Log predictions without waiting for the database or the disk; False if there is no room for them."""
        record = _pack(batch)
        with self._lock:
            if self.depth >= self._limit:
                self.lost += len(batch.ids)
                return False
            self._wal.append(record)
            self._waiting.append(batch)
            self._appended += len(batch.ids)
            return True

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until what was appended before is in the database or sealed on disk; False if that takes longer."""
        with self._progress:
            target = self._flush_target = self._appended
            self._wake.set()
            return self._progress.wait_for(lambda: self._durable >= target, timeout_seconds)

    def label(self, id: str, digit: int, source: str) -> None:
        """As `predictions.label`, also for a prediction that is not written yet; raises LogUnavailable."""
        self._query(predictions.label, id, digit, source)

    def find(self, id: str) -> Row[Any]:
        """As `predictions.find`, also for a prediction that is not written yet; raises LogUnavailable."""
        return self._query(predictions.find, id)

    def _query(self, query: Callable[..., T], *arguments: Any) -> T:
        """Run the query, and for an unknown id again after this worker and then the others have written what waits."""
        try:
            for wait in (self.flush, partial(time.sleep, 2 * self._interval_seconds)):
                with suppress(UnknownPrediction):
                    return query(self._connected(), *arguments)
                wait()
            return query(self._connected(), *arguments)
        except database.ERRORS as error:
            raise LogUnavailable(UNREACHABLE) from error

    def _connected(self) -> Engine:
        if self.engine is None:
            raise LogUnavailable(UNREACHABLE)
        return self.engine

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Write what waits and stop; call it before the process ends."""
        self._flush_target, self._closing = self._appended, True
        self._wake.set()
        self._thread.join(timeout_seconds)
        if self.depth:
            log.error("%d predictions could not be logged before the end", self.depth)

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(self._interval_seconds)
            self._wake.clear()
            closing = self._closing
            while self._write_batch():
                pass
        with self._lock:
            self._wal.close(self._appended, self._durable)
        if self._engine is not None:
            self._engine.dispose()

    def _write_batch(self) -> bool:
        """Write the oldest predictions to the database, or seal them on disk; whether to go on at once.

        What is appended meanwhile waits for the next interval: under load, writing a few at a time costs more than answering them.
        """
        is_unreachable = time.monotonic() < self._retry_at and not self._closing
        if is_unreachable and (self._is_disk_full or (self.depth < BATCH_SIZE and self._durable >= self._flush_target)):
            return False
        batch = self._next_batch()
        is_inserted = not is_unreachable and self._insert(batch)
        durable = self._durable + _count(batch) if is_inserted else self._seal(batch)
        with self._progress:
            has_progress = durable > self._durable
            self._durable = durable
            self._progress.notify_all()
            return has_progress and (self._durable < self._flush_target or self.depth >= BATCH_SIZE)

    def _next_batch(self) -> list[PredictionBatch]:
        """The oldest predictions, about BATCH_SIZE, so that a burst is not in memory twice."""
        batch: list[PredictionBatch] = []
        count = 0
        with self._lock:
            self._wal.rotate(self._appended)
            while self._waiting and count < BATCH_SIZE:
                batch.append(self._waiting.popleft())
                count += len(batch[-1].ids)
        return batch

    def _insert(self, batch: list[PredictionBatch]) -> bool:
        """Write to the database what waits in memory and what can be recovered from disk; False if it is unreachable."""
        try:
            if self._engine is None:
                self._engine = database.connect(self._url, busy_seconds=2)
            if batch:
                predictions.append(self._engine, list(predictions.to_rows(batch, self._audit_sample_rate)))
                self._wal.discard(self._durable + _count(batch))
            self._recover(self._engine)
            self._delete_expired(self._engine)
        except database.ERRORS as error:
            if self._retry_at == 0:
                reason = first_line(error)
                log.warning("the database is unreachable (%s); predictions are kept in %s", reason, self.spool)
            self._retry_at = time.monotonic() + self._retry_seconds
            return False
        if self._retry_at:
            log.info("the database is reachable again; the predictions in %s are written to it", self.spool)
            self._retry_at = 0.0
        return True

    def _seal(self, batch: list[PredictionBatch]) -> int:
        """Seal the segments on disk and free their predictions; return the number of durable predictions.

        What the disk did not accept is appended once more.
        """
        durable = max(self._wal.seal(), self._durable)
        with self._lock:
            self._waiting.extendleft(reversed(batch))
            count = self._durable
            while count < durable:
                count += len(self._waiting.popleft().ids)
            was_full, self._is_disk_full = self._is_disk_full, self._wal.drop_incomplete()
            if self._is_disk_full:
                for waiting in self._waiting:
                    self._wal.append(_pack(waiting))
        if self._is_disk_full and not was_full:
            log.warning("%s accepts no predictions either; at most %d wait in memory", self.spool, self._limit)
        return durable

    def _recover(self, engine: Engine) -> None:
        """Write segments to the database; another worker may do the same, which writes each prediction once.

        New predictions do not wait for the end of a long recovery.
        """
        for path, records in write_ahead_log.recoverable(self.spool):
            try:
                rows = list(predictions.to_rows(map(_unpack, records), self._audit_sample_rate))
            except (ValueError, KeyError) as error:
                log.error("%s contains no predictions (%s); it is renamed to .damaged", path, error)
                path.rename(path.with_suffix(".damaged"))
                continue
            predictions.append(engine, rows)
            path.unlink(missing_ok=True)
            if rows and path.suffix == write_ahead_log.ACTIVE:
                log.info("the predictions in %s, of a process that was killed, are in the database", path.name)
            if self.depth >= BATCH_SIZE:
                return

    def _delete_expired(self, engine: Engine) -> None:
        """Once an hour, delete the predictions that are older than the retention time."""
        if self._retention is None or time.monotonic() < self._delete_at:
            return
        self._delete_at = time.monotonic() + 3600
        if deleted := predictions.delete_before(engine, datetime.now(UTC) - self._retention):
            log.info("deleted %d predictions older than %s", deleted, self._retention)


def _count(batches: list[PredictionBatch]) -> int:
    return sum(len(batch.ids) for batch in batches)


def _pack(batch: PredictionBatch) -> bytes:
    """A record of the write-ahead log: one line of JSON, the images, the probabilities."""
    head = orjson.dumps([batch.ids, batch.at, batch.version, batch.route])
    return b"".join((head, b"\n", batch.images.tobytes(), batch.probabilities.tobytes()))


def _unpack(record: bytes) -> PredictionBatch:
    head, _, arrays = record.partition(b"\n")
    ids, at, version, route = orjson.loads(head)
    end = len(ids) * PIXELS
    images = np.frombuffer(arrays[:end], np.uint8).reshape(-1, SIZE, SIZE)
    probabilities = np.frombuffer(arrays[end:], np.float32).reshape(-1, 10)
    return PredictionBatch(ids, datetime.fromisoformat(at), version, images, probabilities, route)
