"""The prediction log: one record per answer with its pixels, labelled later by feedback, read back in windows."""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
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

from digits.images import SIZE, Images, Labels
from digits.storage import database

Row = dict[str, Any]
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


class PredictionBatch(NamedTuple):  # made for every batch, three times as fast as a frozen dataclass
    """What one request, or several together, were answered; arrays of length n."""

    ids: list[str]
    at: datetime
    version: str
    images: Images  # (n, 28, 28)
    probabilities: NDArray[np.float32]  # (n, 10)
    route: str


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
    audit: bool
    label: int  # -1 when unknown


def new_ids(count: int = 1) -> list[str]:
    """Ids of 32 characters: milliseconds, the last four digits of the position, and 64 random bits each, which nobody can guess."""
    now, drawn = f"{time.time_ns() // 1_000_000:012x}", os.urandom(8 * count).hex()
    return [f"{now}{position & 0xFFFF:04x}{drawn[16 * position : 16 * position + 16]}" for position in range(count)]


def to_rows(batch: Iterable[PredictionBatch], audit_sample_rate: float) -> Iterator[Row]:
    """Rows for `append`, of which `audit_share` are drawn for the audit sample; raises ValueError where the lengths differ."""
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
                "audit": random.random() < audit_sample_rate,
            }


def append(engine: Engine, rows: list[Row]) -> None:
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


def read_window(
    engine: Engine,
    since: datetime,
    until: datetime | None = None,
    limit: int | None = None,
    version: str | None = None,
    labelled: bool = False,
) -> Window:
    """The answers from `since` up to but not including `until`, or those of them that feedback said something of.

    With a limit at most so many: every second, third, ... of them, so that they are spread over the whole time and reading again
    gives the same. Raises ValueError when a record does not hold an image and ten probabilities.
    """
    which = [predictions.c.at >= since]
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
        return connection.scalar(chosen) or 0


def versions_between(engine: Engine, since: datetime, until: datetime) -> list[str]:
    """The versions that answered from `since` up to but not including `until`, as champions."""
    chosen = select(predictions.c.version).distinct().where(predictions.c.at >= since, predictions.c.at < until)
    with engine.connect() as connection:
        return sorted(connection.scalars(chosen))


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
    return Prediction(row.id, row.at, row.version, row.digit, probabilities, image, row.route, row.audit, _label(row))


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
