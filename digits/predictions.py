"""The prediction log: one record per answer with its pixels, labelled later by feedback, read back in windows."""

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    String,
    Table,
    and_,
    delete,
    func,
    insert,
    select,
    true,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from digits import database, journal
from digits.images import SIZE, Images, Labels
from digits.journal import Journal

log = logging.getLogger("digits.predictions")

Row = dict[str, Any]
T = TypeVar("T")
BATCH = 2000  # answers written in one transaction
ROWS_AT_ONCE = 1024  # of 10 values each; SQLite takes 32,766 values in a statement, PostgreSQL 65,535
AUDITOR = "audit"  # the source of feedback from those who label the audit sample, all of it


predictions = Table(
    "predictions",
    database.metadata,
    Column("id", String(32), primary_key=True),  # begins with the time, so that new rows go to the end of the index
    Column("at", database.UtcDateTime, nullable=False),
    Column("version", String(32), nullable=False),
    Column("digit", SmallInteger, nullable=False),
    Column("probability", Float, nullable=False),
    Column("probabilities", LargeBinary(40), nullable=False),  # 10 float32, little-endian
    Column("image", LargeBinary(SIZE * SIZE), nullable=False),  # 28 x 28 uint8, row by row
    Column("route", String(32), nullable=False),
    Column("role", String(16), nullable=False),  # champion, or challenger for a shadow's answer
    Column("audit", Boolean, nullable=False),  # drawn at random to be labelled, whatever anybody complains about
    Index("predictions_at", "at"),
)

_COLUMNS = tuple(predictions.columns)

feedback = Table(
    "feedback",
    database.metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("prediction_id", String(32), nullable=False, index=True),
    Column("digit", SmallInteger, nullable=False),
    Column("at", database.UtcDateTime, nullable=False),
    Column("source", String(64), nullable=False),
)


class UnknownPrediction(LookupError):
    """No answer has this id."""


class LogAway(ConnectionError):
    """The database of the log does not answer."""


@dataclass(frozen=True)
class Window:
    """Answers of a stretch of time, oldest first; every array has length n."""

    ids: list[str]
    at: list[datetime]  # UTC
    versions: list[str]
    images: Images  # (n, 28, 28)
    digits: Labels  # (n,), what was answered
    probabilities: NDArray[np.float32]  # (n, 10)
    labels: NDArray[np.int8]  # (n,), the true digit where feedback told it, else -1
    audited: NDArray[np.bool_]  # (n,), whether the label belongs to the audit sample

    def __len__(self) -> int:
        return len(self.ids)


class Answers(NamedTuple):  # made for every request, three times as fast as a frozen dataclass
    """What one request was answered; arrays of length n."""

    ids: list[str]
    at: datetime
    version: str
    images: Images  # (n, 28, 28)
    probabilities: NDArray[np.float32]  # (n, 10)
    route: str
    role: str = "champion"


@dataclass(frozen=True)
class Prediction:
    """One answer, found by its id."""

    id: str
    at: datetime
    version: str
    digit: int
    probabilities: NDArray[np.float32]  # (10,)
    image: NDArray[np.uint8]  # (28, 28)
    route: str
    role: str
    audit: bool
    label: int  # -1 when unknown


def new_ids(count: int = 1) -> list[str]:
    """Ids of 32 characters for up to 65,536 answers: milliseconds, position, and 64 random bits each, which nobody can guess."""
    now, drawn = f"{time.time_ns() // 1_000_000:012x}", os.urandom(8 * count).hex()
    return [f"{now}{position:04x}{drawn[16 * position : 16 * position + 16]}" for position in range(count)]


def shadow_id(id: str) -> str:
    """The id of the challenger's answer on the image of a champion's answer, so that one can be found from the other.

    Times in milliseconds begin with a 0 until the year 2527.
    """
    return f"c{id[1:]}"


def read_window(
    engine: Engine,
    since: datetime,
    until: datetime | None = None,
    limit: int | None = None,
    version: str | None = None,
    role: str = "champion",
    labelled: bool = False,
) -> Window:
    """The answers from `since` up to but not including `until`, or those of them that feedback said something of.

    With a limit at most so many: every second, third, ... of them, so that they are spread over the whole time and reading again
    gives the same. Raises ValueError when a record does not hold an image and ten probabilities.
    """
    which = [predictions.c.at >= since, predictions.c.role == role]
    if until is not None:
        which.append(predictions.c.at < until)
    if version is not None:
        which.append(predictions.c.version == version)
    if labelled:
        which.append(predictions.c.id.in_(select(feedback.c.prediction_id)))
    chosen = with_labels().where(*which).order_by(predictions.c.at, predictions.c.id)
    with engine.connect() as connection:
        if limit is not None:
            found = connection.scalar(select(func.count()).select_from(predictions).where(*which)) or 0
            if (step := -(-found // limit)) > 1:
                place = func.row_number().over(order_by=(predictions.c.at, predictions.c.id)).label("place")
                placed = select(predictions.c.id, place).where(*which).subquery()
                chosen = chosen.where(predictions.c.id.in_(select(placed.c.id).where(placed.c.place % step == 0)))
        rows = connection.execute(chosen).all()
    return Window(
        ids=[row.id for row in rows],
        at=[row.at for row in rows],
        versions=[row.version for row in rows],
        images=stack(rows, "image", np.uint8, SIZE * SIZE).reshape(-1, SIZE, SIZE),
        digits=np.array([row.digit for row in rows], np.uint8),
        probabilities=stack(rows, "probabilities", np.float32, 10),
        labels=np.array([_label(row) for row in rows], np.int8),
        audited=np.array([row.audited for row in rows], np.bool_),
    )


def count(engine: Engine, since: datetime, version: str) -> int:
    """How many answers the version gave as champion since then."""
    chosen = select(func.count()).where(predictions.c.at >= since, predictions.c.version == version)
    with engine.connect() as connection:
        return connection.scalar(chosen.where(predictions.c.role == "champion")) or 0


def versions_between(engine: Engine, since: datetime, until: datetime) -> list[str]:
    """The versions that answered from `since` up to but not including `until`, as champions."""
    chosen = select(predictions.c.version).distinct().where(predictions.c.at >= since, predictions.c.at < until)
    with engine.connect() as connection:
        return sorted(connection.scalars(chosen.where(predictions.c.role == "champion")))


def with_labels() -> Select[Any]:
    """Every prediction with the last word that feedback had on it; the word of an auditor counts more than later ones.

    `audited` says that the answer was drawn for the audit sample and an auditor labelled it: what others say of a drawn answer
    is said because they chose to, and would make a sample of complaints out of the audit.
    """
    said, checked = (
        select(feedback)
        .where(
            feedback.c.sequence.in_(select(func.max(feedback.c.sequence)).where(who).group_by(feedback.c.prediction_id))
        )
        .subquery(name)
        for name, who in (("said", true()), ("checked", feedback.c.source == AUDITOR))
    )
    joined = predictions.outerjoin(said, predictions.c.id == said.c.prediction_id)
    joined = joined.outerjoin(checked, predictions.c.id == checked.c.prediction_id)
    return select(
        predictions,
        func.coalesce(checked.c.digit, said.c.digit).label("label"),
        func.coalesce(checked.c.sequence, said.c.sequence).label("sequence"),
        func.coalesce(checked.c.source, said.c.source).label("source"),
        and_(predictions.c.audit, checked.c.digit.is_not(None)).label("audited"),
    ).select_from(joined)


def _label(row: Any) -> int:
    return -1 if row.label is None else int(row.label)


def stack(rows: Sequence[Any], column: str, dtype: type[Any], length: int) -> NDArray[Any]:
    """A column of blobs as an array (n, length); raises ValueError for one of another size."""
    size = np.dtype(dtype).itemsize * length
    contents = [getattr(row, column) for row in rows]
    for row, content in zip(rows, contents, strict=True):
        if len(content) != size:
            raise ValueError(f"prediction {row.id} holds {len(content)} bytes of {column}; expected {size}")
    return np.frombuffer(b"".join(contents), dtype).reshape(len(rows), length)


def find(engine: Engine, id: str) -> Prediction:
    """The answer with this id; raises UnknownPrediction when there is none."""
    with engine.connect() as connection:
        row = connection.execute(with_labels().where(predictions.c.id == id)).one_or_none()
    if row is None:
        raise UnknownPrediction(f'no prediction has the id "{id[:40]}"; send the id of an answer')
    probabilities = stack([row], "probabilities", np.float32, 10)[0]
    image = stack([row], "image", np.uint8, SIZE * SIZE).reshape(SIZE, SIZE)
    return Prediction(
        row.id, row.at, row.version, row.digit, probabilities, image, row.route, row.role, row.audit, _label(row)
    )


def label(engine: Engine, id: str, digit: int, source: str) -> None:
    """Record the true digit of an answer. The last word counts and the earlier ones stay; saying it twice changes nothing.

    Raises UnknownPrediction when no answer has this id, ValueError when the digit is none.
    """
    if not 0 <= digit <= 9:
        raise ValueError(f"digit is {digit}; expected a whole number from 0 to 9")
    said = select(feedback.c.digit, feedback.c.source).where(feedback.c.prediction_id == id)
    with engine.begin() as connection:
        if connection.execute(select(predictions.c.id).where(predictions.c.id == id)).one_or_none() is None:
            raise UnknownPrediction(f'no prediction has the id "{id[:40]}"; send the id of an answer')
        last = connection.execute(said.order_by(feedback.c.sequence.desc()).limit(1)).one_or_none()
        if last is None or tuple(last) != (digit, source):
            word = {"prediction_id": id, "digit": digit, "at": datetime.now(UTC), "source": source}
            connection.execute(insert(feedback), word)


def last_words(engine: Engine, source: str) -> dict[str, datetime]:
    """When this source said something last of each answer, by its id; UTC."""
    chosen = select(feedback.c.prediction_id, func.max(feedback.c.at)).where(feedback.c.source == source)
    with engine.connect() as connection:
        rows = connection.execute(chosen.group_by(feedback.c.prediction_id)).all()
    return {row[0]: row[1] for row in rows}


def forget(engine: Engine, before: datetime) -> int:
    """Remove the answers before a moment and what feedback said of them; how many. In steps, to let writers in between."""
    removed = 0
    while True:
        with engine.begin() as connection:
            old = connection.scalars(select(predictions.c.id).where(predictions.c.at < before).limit(1000)).all()
            connection.execute(delete(feedback).where(feedback.c.prediction_id.in_(old)))
            connection.execute(delete(predictions).where(predictions.c.id.in_(old)))
        removed += len(old)
        if len(old) < 1000:
            return removed


class PredictionLog:
    """The log as the service holds it open: appending costs microseconds, a thread of its own writes in batches.

    Every answer is in a journal in the spool folder before it goes out, and in memory until the database has it. While the
    database is away, journals stay behind there and the memory is free; once it is back they are written, without doubles, as are
    those of processes that were killed. What the disk does not take waits in memory, and while `limit` answers do, `append` refuses more.
    """

    def __init__(
        self,
        url: str,
        spool: Path,
        audit_share: float = 0.0,
        keep: timedelta | None = None,
        limit: int = 20_000,
        interval_seconds: float = 0.2,
        retry_seconds: float = 2.0,
    ) -> None:
        self.spool = spool
        self.lost = 0
        self._url, self._audit_share, self._keep, self._limit = url, audit_share, keep, limit
        self._interval_seconds, self._retry_seconds = interval_seconds, retry_seconds
        self._lock = threading.Lock()
        self._waiting: deque[Answers] = deque()
        self._journal = Journal(spool)
        self._journal.turn(0)
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
        return journal.count_left(self.spool)

    @property
    def engine(self) -> Engine | None:
        """The database, or None while it is away."""
        return self._engine if time.monotonic() >= self._away_until else None

    def append(self, answers: Answers) -> bool:
        """Take a request's answers, without waiting for the database or the disk; False where there is no more room for them."""
        record = _pack(answers)
        with self._lock:
            if self.depth >= self._limit:
                self.lost += len(answers.ids)
                return False
            self._journal.append(record)
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
        """As the function `label`, for an answer that may not be written yet; raises LogAway while the database is away."""
        self._ask(lambda engine: label(engine, id, digit, source))

    def find(self, id: str) -> Prediction:
        """As the function `find`, for an answer that may not be written yet; raises LogAway while the database is away."""
        return self._ask(lambda engine: find(engine, id))

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
        except SQLAlchemyError as error:
            raise LogAway("the prediction log's database does not answer; send this again later") from error

    def _connected(self) -> Engine:
        if self.engine is None:
            raise LogAway("the prediction log's database does not answer; send this again later")
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
            self._journal.close(self._taken, self._done)
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

    def _take(self) -> list[Answers]:
        """The oldest that wait, about one batch, so that a burst does not stand in memory twice."""
        batch: list[Answers] = []
        count = 0
        with self._lock:
            self._journal.turn(self._taken)
            while self._waiting and count < BATCH:
                batch.append(self._waiting.popleft())
                count += len(batch[-1].ids)
        return batch

    def _store(self, batch: list[Answers]) -> bool:
        try:
            if self._engine is None:
                self._engine = database.connect(self._url, busy_seconds=2)
            if batch:
                _insert(self._engine, list(_rows(batch, self._audit_share)))
                self._journal.forget(self._done + sum(len(answers.ids) for answers in batch))
            self._replay(self._engine)
            self._forget_old(self._engine)
        except (SQLAlchemyError, OSError) as error:
            if self._away_until == 0:
                reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
                log.warning("the database is away (%s); answers go on and are kept in %s", reason, self.spool)
            self._away_until = time.monotonic() + self._retry_seconds
            return False
        if self._away_until:
            log.info("the database is back, and takes the answers that were kept in %s", self.spool)
            self._away_until = 0.0
        return True

    def _leave(self, batch: list[Answers]) -> int:
        """Leave what waits to the disk, which has it; write what the disk refused once more. How many answers are safe."""
        safe = max(self._journal.leave(), self._done)
        with self._lock:
            self._waiting.extendleft(reversed(batch))
            count = self._done
            while count < safe:
                count += len(self._waiting.popleft().ids)
            was_full, self._is_disk_full = self._is_disk_full, self._journal.drop_torn()
            if self._is_disk_full:
                for answers in self._waiting:
                    self._journal.append(_pack(answers))
        if self._is_disk_full and not was_full:
            log.warning("answers wait in memory, at most %d: %s does not take them either", self._limit, self.spool)
        return safe

    def _replay(self, engine: Engine) -> None:
        """Move into the database what was left on disk; another worker may do the same, to the same end.

        What comes in meanwhile does not wait for the end of a long replay.
        """
        for path, records in journal.left_behind(self.spool):
            self._move(path, _rows(map(_unpack, records), self._audit_share), engine)
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
            _insert(engine, rows)
        path.unlink(missing_ok=True)
        if rows and path.suffix == journal.LIVING:
            log.info("the answers in %s, left by a process that was killed, are in the database", path.name)

    def _forget_old(self, engine: Engine) -> None:
        """Once an hour, what is older than the time answers are kept."""
        if self._keep is None or time.monotonic() < self._forget_at:
            return
        self._forget_at = time.monotonic() + 3600
        removed = forget(engine, datetime.now(UTC) - self._keep)
        if removed:
            log.info("forgot %d answers older than %s", removed, self._keep)


def _rows(batch: Iterable[Answers], audit_share: float) -> Iterator[Row]:
    for answers in batch:
        digits = answers.probabilities.argmax(1).tolist()
        for index, (id, digit) in enumerate(zip(answers.ids, digits, strict=True)):
            yield {
                "id": id,
                "at": answers.at,
                "version": answers.version,
                "digit": digit,
                "probability": float(answers.probabilities[index, digit]),
                "probabilities": answers.probabilities[index].tobytes(),
                "image": answers.images[index].tobytes(),
                "route": answers.route,
                "role": answers.role,
                "audit": random.random() < audit_share,
            }


def _insert(engine: Engine, rows: list[Row]) -> None:
    """Add the rows that are not there yet, in one statement for many rows.

    Driver and database are left alone with it: row by row, a driver takes and gives back Python's lock each time, and the
    requests that wait for it halved the service's speed (`python -m bench.serving`).
    """
    values = _bind_processors(engine.dialect)
    with engine.begin() as connection:
        start = 0
        while start < len(rows):
            # a power of two, because drivers keep prepared statements, and those for a thousand lengths took 200 MB
            count = 1 << (min(len(rows) - start, ROWS_AT_ONCE).bit_length() - 1)
            chunk = rows[start : start + count]
            start += count
            parameters = tuple(value(row[name]) for row in chunk for name, value in values)
            connection.exec_driver_sql(_insert_statement(engine.dialect, len(chunk)), parameters)


def _bind_processors(dialect: Dialect) -> list[tuple[str, Callable[[Any], Any]]]:
    """For each column its name, and what turns a value into what the driver takes."""
    processors = ((column.name, column.type.dialect_impl(dialect).bind_processor(dialect)) for column in _COLUMNS)
    return [(name, processor or (lambda value: value)) for name, processor in processors]


@lru_cache
def _insert_statement(dialect: Dialect, count: int) -> str:
    mark = "?" if dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([mark] * len(_COLUMNS))})"
    names = ", ".join(column.name for column in _COLUMNS)
    return f"INSERT INTO {predictions.name} ({names}) VALUES {', '.join([row] * count)} ON CONFLICT (id) DO NOTHING"


def _pack(answers: Answers) -> bytes:
    """As the journal holds it: one line of JSON, the images, the probabilities."""
    head = orjson.dumps([answers.ids, answers.at, answers.version, answers.route, answers.role])
    return b"".join((head, b"\n", answers.images.tobytes(), answers.probabilities.tobytes()))


def _unpack(record: bytes) -> Answers:
    head, _, arrays = record.partition(b"\n")
    ids, at, version, route, role = orjson.loads(head)
    end = len(ids) * SIZE * SIZE
    images = np.frombuffer(arrays[:end], np.uint8).reshape(-1, SIZE, SIZE)
    probabilities = np.frombuffer(arrays[end:], np.float32).reshape(-1, 10)
    return Answers(ids, datetime.fromisoformat(at), version, images, probabilities, route, role)
