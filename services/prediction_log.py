"""The prediction log as the service holds it open: answers are safe on disk before they go out, and in the database soon after."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson
from sqlalchemy import Engine

from digits.images import SIZE
from digits.storage import database, predictions
from digits.storage.predictions import Prediction, PredictionBatch, Row, UnknownPrediction
from services import write_ahead_log
from services.write_ahead_log import WriteAheadLog

log = logging.getLogger("digits.storage.predictions")

T = TypeVar("T")
BATCH = 2000  # answers written in one transaction


class LogUnavailable(ConnectionError):
    """The database of the log does not answer."""


class PredictionLog:
    """Appending costs microseconds; a thread of its own writes in batches.

    Every answer is in a journal in the spool folder before it goes out, and in memory until the database has it. While the
    database is away, journals stay behind there and the memory is free; once it is back they are written, without doubles, as are
    those of processes that were killed. What the disk does not take waits in memory, and while `limit` answers do, `append` refuses more.
    """

    def __init__(
        self,
        url: str,
        spool: Path,
        audit_sample_rate: float = 0.0,
        keep: timedelta | None = None,
        limit: int = 20_000,
        interval_seconds: float = 0.2,
        retry_seconds: float = 2.0,
    ) -> None:
        self.spool = spool
        self.lost = 0
        self._url, self._audit_sample_rate, self._keep, self._limit = url, audit_sample_rate, keep, limit
        self._interval_seconds, self._retry_seconds = interval_seconds, retry_seconds
        self._lock = threading.Lock()
        self._waiting: deque[PredictionBatch] = deque()
        self._wal = WriteAheadLog(spool)
        self._wal.turn(0)
        self._taken = self._done = 0  # answers appended, and those of them that are safe
        self._wanted = 0  # so many are to be made safe at once
        self._engine: Engine | None = None
        self._away_until = 0.0
        self._is_disk_full = False
        self._forget_at = 0.0
        self._wake, self._closing = threading.Event(), False
        self._progress = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Answers that wait to be written."""
        return self._taken - self._done

    @property
    def spooled(self) -> int:
        """Batches that wait on disk for the database."""
        return write_ahead_log.count_left(self.spool)

    @property
    def engine(self) -> Engine | None:
        """The database, or None while it is away."""
        return self._engine if time.monotonic() >= self._away_until else None

    def append(self, answers: PredictionBatch) -> bool:
        """Take answers, without waiting for the database or the disk; False where there is no more room for them."""
        record = _pack(answers)
        with self._lock:
            if self.depth >= self._limit:
                self.lost += len(answers.ids)
                return False
            self._wal.append(record)
            self._waiting.append(answers)
            self._taken += len(answers.ids)
            return True

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until what was appended before is in the database or on disk; False when that takes longer."""
        with self._progress:
            target = self._wanted = self._taken
            self._wake.set()
            return self._progress.wait_for(lambda: self._done >= target, timeout_seconds)

    def label(self, id: str, digit: int, source: str) -> None:
        """As `predictions.label`, for an answer that may not be written yet; raises LogAway while the database is away."""
        self._ask(lambda engine: predictions.label(engine, id, digit, source))

    def find(self, id: str) -> Prediction:
        """As `predictions.find`, for an answer that may not be written yet; raises LogAway while the database is away."""
        return self._ask(lambda engine: predictions.find(engine, id))

    def _ask(self, question: Callable[[Engine], T]) -> T:
        """Ask at once, and when the id is unknown again after what waits here and in other workers was written."""
        try:
            with suppress(UnknownPrediction):
                return question(self._connected())
            self.flush()
            with suppress(UnknownPrediction):
                return question(self._connected())
            time.sleep(2 * self._interval_seconds)
            return question(self._connected())
        except database.ERRORS as error:
            raise LogUnavailable("the prediction log's database does not answer; send this again later") from error

    def _connected(self) -> Engine:
        if self.engine is None:
            raise LogUnavailable("the prediction log's database does not answer; send this again later")
        return self.engine

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Write what waits and stop; call it before the process ends."""
        self._wanted, self._closing = self._taken, True
        self._wake.set()
        self._thread.join(timeout_seconds)
        if self.depth:
            log.error("%d answers could not be logged before the end", self.depth)

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(self._interval_seconds)
            self._wake.clear()
            closing = self._closing
            while self._round():
                pass
        with self._lock:
            self._wal.close(self._taken, self._done)
        if self._engine is not None:
            self._engine.dispose()

    def _round(self) -> bool:
        """Write some of what waits: into the database, else leave it on the disk, else keep it; whether to go on at once.

        What came in meanwhile waits for the next round: under load, a round for each few answers cost more than the answers.
        """
        is_away = time.monotonic() < self._away_until and not self._closing
        if is_away and (self._is_disk_full or (self.depth < BATCH and self._done >= self._wanted)):
            return False
        batch = self._take()
        if not is_away and self._store(batch):
            safe = self._done + sum(len(answers.ids) for answers in batch)
        else:
            safe = self._leave(batch)
        with self._progress:
            going_on = safe > self._done
            self._done = safe
            self._progress.notify_all()
            return going_on and (self._done < self._wanted or self.depth >= BATCH)

    def _take(self) -> list[PredictionBatch]:
        """The oldest that wait, about one batch, so that a burst does not stand in memory twice."""
        batch: list[PredictionBatch] = []
        count = 0
        with self._lock:
            self._wal.turn(self._taken)
            while self._waiting and count < BATCH:
                batch.append(self._waiting.popleft())
                count += len(batch[-1].ids)
        return batch

    def _store(self, batch: list[PredictionBatch]) -> bool:
        try:
            if self._engine is None:
                self._engine = database.connect(self._url, busy_seconds=2)
            if batch:
                predictions.append(self._engine, list(predictions.to_rows(batch, self._audit_sample_rate)))
                self._wal.forget(self._done + sum(len(answers.ids) for answers in batch))
            self._replay(self._engine)
            self._forget_old(self._engine)
        except database.ERRORS as error:
            if self._away_until == 0:
                reason = database.first_line(error)
                log.warning("the database is away (%s); answers go on and are kept in %s", reason, self.spool)
            self._away_until = time.monotonic() + self._retry_seconds
            return False
        if self._away_until:
            log.info("the database is back, and takes the answers that were kept in %s", self.spool)
            self._away_until = 0.0
        return True

    def _leave(self, batch: list[PredictionBatch]) -> int:
        """Leave what waits to the disk, which has it; write what the disk refused once more. How many answers are safe."""
        safe = max(self._wal.leave(), self._done)
        with self._lock:
            self._waiting.extendleft(reversed(batch))
            count = self._done
            while count < safe:
                count += len(self._waiting.popleft().ids)
            was_full, self._is_disk_full = self._is_disk_full, self._wal.drop_torn()
            if self._is_disk_full:
                for answers in self._waiting:
                    self._wal.append(_pack(answers))
        if self._is_disk_full and not was_full:
            log.warning("answers wait in memory, at most %d: %s does not take them either", self._limit, self.spool)
        return safe

    def _replay(self, engine: Engine) -> None:
        """Move into the database what was left on disk; another worker may do the same, to the same end.

        What comes in meanwhile does not wait for the end of a long replay.
        """
        for path, records in write_ahead_log.left_behind(self.spool):
            self._move(path, predictions.to_rows(map(_unpack, records), self._audit_sample_rate), engine)
            if self.depth >= BATCH:
                return

    def _move(self, path: Path, contents: Iterable[Row], engine: Engine) -> None:
        try:
            rows = list(contents)
        except (ValueError, KeyError) as error:
            log.error("%s holds no answers (%s); it is set aside", path, error)
            path.rename(path.with_suffix(".damaged"))
            return
        if rows:
            predictions.append(engine, rows)
        path.unlink(missing_ok=True)
        if rows and path.suffix == write_ahead_log.LIVING:
            log.info("the answers in %s, left by a process that was killed, are in the database", path.name)

    def _forget_old(self, engine: Engine) -> None:
        """Once an hour, what is older than the time answers are kept."""
        if self._keep is None or time.monotonic() < self._forget_at:
            return
        self._forget_at = time.monotonic() + 3600
        removed = predictions.delete_before(engine, datetime.now(UTC) - self._keep)
        if removed:
            log.info("forgot %d answers older than %s", removed, self._keep)


def _pack(answers: PredictionBatch) -> bytes:
    """As the journal holds it: one line of JSON, the images, the probabilities."""
    head = orjson.dumps([answers.ids, answers.at, answers.version, answers.route])
    return b"".join((head, b"\n", answers.images.tobytes(), answers.probabilities.tobytes()))


def _unpack(record: bytes) -> PredictionBatch:
    head, _, arrays = record.partition(b"\n")
    ids, at, version, route = orjson.loads(head)
    end = len(ids) * SIZE * SIZE
    images = np.frombuffer(arrays[:end], np.uint8).reshape(-1, SIZE, SIZE)
    probabilities = np.frombuffer(arrays[end:], np.float32).reshape(-1, 10)
    return PredictionBatch(ids, datetime.fromisoformat(at), version, images, probabilities, route)
