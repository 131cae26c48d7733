"""The service's prediction log: a prediction is in the write-ahead log before it is answered, and in the database soon after."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from bentoml.exceptions import NotFound, ServiceUnavailable
from sqlalchemy import Engine

from digits.errors import first_line
from digits.images import SIZE
from digits.storage import database, label_queue, predictions, request_counts
from digits.storage.predictions import PredictionBatch, PredictionWindow, UnknownPrediction, new_ids
from services import write_ahead_log
from services.request_counter import RequestCounter
from services.write_ahead_log import ACTIVE, DAMAGED, SEALED, Contents, Segment, WriteAheadLog, segments

log = logging.getLogger("digits.prediction_log")

T = TypeVar("T")
RECOVERY_SECONDS = 0.5
WRITE_FILL = 0.25  # a log this full is written at once
COUNT_SECONDS = 10.0
RECENT_SECONDS = 60.0
CLOCK_TRIAL = timedelta(days=1)  # for so long there must have been answers by a clock before it deletes


class PredictionLog:
    """Appending takes microseconds; a thread writes to the database in batches.

    A batch of predictions is handed to the operating system before it is answered (not fsynced), or refused where the disk does not
    accept it; the thread writes the segments of this process and of killed ones to the database, each prediction once. What no
    database accepts is set aside. `limit` predictions may wait for the thread at a time; while the database is unreachable, they
    wait on disk.
    """

    def __init__(
        self,
        url: str,
        spool: Path,
        audit_sample_rate: float = 0.0,
        retention: timedelta | None = None,
        limit: int = 50_000,
        interval_seconds: float = 0.2,
        retry_seconds: float = 2.0,
    ) -> None:
        self.spool = spool
        self.lost = 0
        self.counter = RequestCounter()
        self._url, self._audit_sample_rate, self._retention, self._limit = url, audit_sample_rate, retention, limit
        self._interval_seconds, self._retry_seconds = interval_seconds, retry_seconds
        self._wal = WriteAheadLog(spool)
        # Numbers of predictions since the start: appended, and those that the thread has dealt with.
        self._appended = self._stored = 0
        # Why the thread does not write, though the database may be reachable.
        self.problem: str | None = None
        self._engine: Engine | None = None
        self._retry_at = self._delete_at = self._count_at = 0.0
        self._wake, self._closing = threading.Event(), False
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Number of predictions that wait for the thread."""
        return self._appended - self._stored

    @property
    def sealed_segments(self) -> int:
        """Number of write-ahead log files that wait for the database."""
        return len(segments(self.spool, SEALED))

    @property
    def damaged_segments(self) -> int:
        """Number of files that hold damaged records, or some that cannot be stored."""
        return len(segments(self.spool, DAMAGED))

    @property
    def engine(self) -> Engine | None:
        """The database, or None while it is unreachable."""
        return self._engine if time.monotonic() >= self._retry_at else None

    def append(self, batch: PredictionBatch) -> bool:
        """Log predictions without waiting for the database; False if there is no room for them, or the disk refuses them."""
        with self._progress:
            if self.depth >= self._limit or not self._wal.append(batch):
                self.lost += len(batch.ids)
                return False
            self._appended += len(batch.ids)
            if self.depth >= WRITE_FILL * self._limit:
                self._wake.set()
            return True

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until what was appended before is in the database, or on disk while it is unreachable; False if that takes longer."""
        with self._progress:
            target = self._appended
            self._wake.set()
            return self._progress.wait_for(lambda: self._stored >= target, timeout_seconds)

    async def settle(self) -> None:
        """Wait until what this worker has answered so far is in the database, as far as it is reachable; five seconds at most."""
        target, deadline = self._appended, time.monotonic() + 5
        self._wake.set()
        while self._stored < target and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    async def settle_others(self) -> None:
        """Wait until what any other worker has answered so far is in the database, as far as it is reachable."""
        await asyncio.sleep(2 * self._interval_seconds)

    def label(self, id: str, label: int, source: str) -> int | None:
        """Like `label_queue.label`; raises NotFound or ServiceUnavailable."""
        return self.query(label_queue.label, id, label, source)

    def find(self, id: str) -> PredictionWindow:
        """Like `predictions.find`; raises NotFound or ServiceUnavailable."""
        return self.query(predictions.find, id)

    def query(self, query: Callable[..., T], *arguments: Any) -> T:
        """The result of a function of the database; raises NotFound or ServiceUnavailable."""
        if (engine := self.engine) is not None:
            with suppress(*database.ERRORS):
                try:
                    return query(engine, *arguments)
                except UnknownPrediction as error:
                    raise NotFound(str(error)) from error
        raise ServiceUnavailable("the database of the prediction log is unreachable; send this again later")

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Write what waits and stop; call it before the process ends."""
        self._closing = True
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
            try:
                self._write()
                self.problem = None
            # Whatever it is, the next pass may succeed, and a thread that ended would lose all that follows.
            except Exception as error:
                problem = f"predictions are not written to the database: {first_line(error)}"
                if problem != self.problem:
                    log.exception("%s", problem)
                self.problem = problem
        self._wal.seal()
        self._wal.close()
        if self._engine is not None:
            self._engine.dispose()

    def _write(self) -> None:
        """Store what was appended, or leave it on disk while the database is unreachable."""
        is_due = self._closing or time.monotonic() >= self._retry_at
        # While the database is unreachable, one segment is enough to try it with: each needs space of its own.
        can_seal = self._closing or not self._retry_at or not self.sealed_segments
        with self._progress:
            self._wal.refill()
            appended, new = self._appended, self._wal.seal() if is_due and can_seal else []
            # What waits for a database that is unreachable is on disk, and would fill the memory.
            self._wal.forget_sealed()
        if is_due:
            self._store(new)
        with self._progress:
            self._stored = appended
            self._progress.notify_all()

    def _store(self, new: list[Segment]) -> None:
        """Write the new segments and those of the past to the database; leave them where it is unreachable."""
        try:
            engine = self._connected()
            self._store_segments(engine, new)
            self._store_counts(engine)
            self._delete_expired(engine)
        # Not OSError: a file of the log that cannot be renamed or removed says nothing of the database.
        except database.OUTAGES as error:
            if self._retry_at == 0:
                reason = first_line(error)
                log.warning("the database is unreachable (%s); predictions are kept in %s", reason, self.spool)
            self._retry_at = time.monotonic() + self._retry_seconds
            return
        if self._retry_at:
            log.info("the database is reachable again; the predictions in %s are written to it", self.spool)
            self._retry_at = 0.0

    def _connected(self) -> Engine:
        if self._engine is None:
            self._engine = database.connect(self._url, busy_seconds=2)
        return self._engine

    def _store_segments(self, engine: Engine, new: list[Segment]) -> None:
        """Store the new segments, then older ones for a while, because new predictions do not wait for the end of a long recovery.

        Another worker may store the same ones, which writes each prediction once. Raises what failed last, after the others are stored.
        """
        deadline, known, failure = time.monotonic() + RECOVERY_SECONDS, dict(new), None
        # an active segment belongs to a dead process, or cannot be read
        paths = chain(known, segments(self.spool, SEALED, ACTIVE))
        for path, contents in write_ahead_log.read(paths, known):
            if path not in known and time.monotonic() > deadline:
                break
            try:
                self._store_segment(engine, path, contents)
            except database.OUTAGES:
                raise
            # Whatever it is, it must not keep the other segments from the database.
            except Exception as error:
                failure = error
        if failure:
            raise failure

    def _store_segment(self, engine: Engine, path: Path, contents: Contents) -> None:
        refused = self._insert(engine, contents.batches)
        if contents.damaged_bytes or refused:
            self._set_aside(path, contents.damaged_bytes, refused)
        else:
            path.unlink(missing_ok=True)
            if contents.batches and path.suffix == ACTIVE:
                log.info("the predictions in %s, of a process that was killed, are in the database", path.name)

    def _insert(self, engine: Engine, batches: list[PredictionBatch]) -> int:
        """Store the predictions; returns the number of batches that cannot be stored for what they contain."""
        try:
            predictions.append(engine, batches, self._audit_sample_rate)
        except database.INTERRUPTIONS:
            raise
        # Drivers and libraries raise many kinds for a value that they do not expect.
        except Exception:
            return sum(self._is_refused(engine, batch) for batch in batches)
        return 0

    def _is_refused(self, engine: Engine, batch: PredictionBatch) -> bool:
        """Store the predictions of one batch, or see that others can be stored; raises what failed where they cannot."""
        try:
            predictions.append(engine, [batch], self._audit_sample_rate)
        except database.INTERRUPTIONS:
            raise
        except Exception as error:
            predictions.append(engine, [_blank()], 0.0, is_trial=True)
            log.error("a record cannot be stored: %s", first_line(error))
            return True
        return False

    def _set_aside(self, path: Path, damaged_bytes: int, refused: int) -> None:
        """Keep a segment that holds more than is in the database now."""
        set_aside = path.rename(path.with_suffix(DAMAGED))
        text = "%s: %d bytes are no whole record, and %d records cannot be stored; the others are stored"
        log.error(text, set_aside, damaged_bytes, refused)

    def _store_counts(self, engine: Engine) -> None:
        """Every ten seconds, and before the process ends, write how many requests there were."""
        if self._closing or time.monotonic() >= self._count_at:
            self.counter.store(engine)
            self._count_at = time.monotonic() + COUNT_SECONDS

    def _delete_expired(self, engine: Engine) -> None:
        """Once an hour, delete the predictions and request counts older than the retention time; counts of five weeks stay.

        A clock that jumps ahead must not delete the log, so time goes on only while there are answers: it is a day after the
        newest answer that is at least a day old.
        """
        if self._retention is None or time.monotonic() < self._delete_at:
            return
        self._delete_at = time.monotonic() + 3600
        now, trial = datetime.now(UTC), min(CLOCK_TRIAL, self._retention)
        if newest := predictions.start_of_newest(engine, 1, now - trial):
            now = newest + trial
        before = now - self._retention
        request_counts.delete_before(engine, min(before, now - request_counts.MIN_KEPT))
        for path in segments(self.spool, DAMAGED):
            if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                path.unlink(missing_ok=True)
        if deleted := predictions.delete_before(engine, before):
            log.info("deleted %d predictions older than %s", deleted, self._retention)


def _blank() -> PredictionBatch:
    """A prediction that can always be stored, as a trial."""
    images, even = np.zeros((1, SIZE, SIZE), np.uint8), np.full((1, 10), 0.1, np.float32)
    return PredictionBatch(new_ids(), datetime.now(UTC), "0", images, even, "/classify")


def is_recent(id: str) -> bool:
    """Whether an id has the form of one of the last minute, which may not be in the database yet."""
    with suppress(UnknownPrediction):
        return abs(time.time() - predictions.made_at(id)) < RECENT_SECONDS
    return False
