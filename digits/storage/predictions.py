"""The prediction log: one record per prediction with its pixels, labelled later by feedback, read in windows of time."""

import os
import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Dialect, Engine, Select, and_, delete, func, insert, select

from digits.errors import quote
from digits.images import PIXELS, SIZE, Images, Labels
from digits.storage import database

BATCH_SIZE = 1024  # rows of 10 values per statement; SQLite accepts 32,766 values, PostgreSQL 65,535
TIME_DIGITS = 16  # at the start of an id; those that follow are random
_ID = re.compile(r"[0-9a-f]{32}")
AUDITOR = "audit"  # the source of all feedback from auditors

predictions = sa.Table(
    "predictions",
    database.metadata,
    # Begins with the time, so that new rows go to the end of the index.
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("at", database.UtcDateTime, nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("digit", sa.SmallInteger, nullable=False),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("probabilities", sa.LargeBinary(40), nullable=False),  # 10 float32, little-endian
    sa.Column("image", sa.LargeBinary(SIZE * SIZE), nullable=False),  # 28 x 28 uint8, row by row
    sa.Column("route", sa.String(32), nullable=False),
    sa.Column("client", sa.String(64), nullable=False),  # the API key or X-Client-ID; empty where unknown
    sa.Column("audit", sa.Boolean, nullable=False),  # drawn at random for labelling, independent of complaints
    sa.Index("predictions_at", "at"),
)

_COLUMNS = tuple(predictions.columns)

feedback = sa.Table(
    "feedback",
    database.metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("prediction_id", sa.String(32), nullable=False, index=True),
    sa.Column("label", sa.SmallInteger, nullable=False),
    sa.Column("at", database.UtcDateTime, nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
)


class UnknownPrediction(LookupError):
    """No prediction has this id."""


@dataclass(frozen=True)
class PredictionWindow:
    """The predictions of a period, oldest first; every array has length n."""

    ids: list[str]
    at: list[datetime]  # UTC
    versions: list[str]
    routes: list[str]
    clients: list[str]  # who sent each image, "" where unknown
    images: Images  # (n, 28, 28)
    digits: Labels  # (n,), the predicted ones
    probabilities: NDArray[np.float32]  # (n, 10)
    labels: NDArray[np.int8]  # (n,), the true digit according to feedback, else -1
    audited: NDArray[np.bool_]  # (n,), whether the label belongs to the audit sample

    def __len__(self) -> int:
        return len(self.ids)


# A NamedTuple is created three times as fast as a frozen dataclass.
class PredictionBatch(NamedTuple):
    """The predictions for one or several requests; arrays of length n."""

    ids: list[str]
    at: datetime
    version: str
    images: Images  # (n, 28, 28)
    probabilities: NDArray[np.float32]  # (n, 10)
    route: str
    clients: Sequence[str] = ()  # who sent each image; empty where nobody is known


def new_ids(count: int = 1) -> list[str]:
    """Ids of 32 hex digits: milliseconds, the position modulo 65,536 as four hex digits, 64 random bits against guessing."""
    # They sort by time, as UUIDv7 do, which Python has from 3.14 on.
    now, drawn = time.time_ns() // 1_000_000 << 16, os.urandom(8 * count).hex(" ", 8).split()
    return [f"{now | position & 0xFFFF:016x}{random_digits}" for position, random_digits in enumerate(drawn)]


def made_at(id: str) -> float:
    """The time of an id in seconds since 1970; raises UnknownPrediction for a text of another form."""
    if not _ID.fullmatch(id):
        raise UnknownPrediction(f"no prediction has the id {quote(id)}; send the id of a prediction")
    return (int(id[:TIME_DIGITS], 16) >> 16) / 1000


def append(engine: Engine, batches: Iterable[PredictionBatch], audit_sample_rate: float) -> None:
    """Add the predictions that are not there yet, a random share of them to the audit sample, in one statement for many rows.

    Row by row, a driver acquires and releases Python's lock each time; the requests waiting for it halved the service's speed
    (`python -m bench.serving`).
    """
    as_bound: Any = predictions.c.at.type.dialect_impl(engine.dialect).bind_processor(engine.dialect)
    rows = [row for batch in batches for row in _rows(batch, as_bound(batch.at), audit_sample_rate)]
    with engine.begin() as connection:
        start = 0
        while start < len(rows):
            # A power of two, because drivers cache prepared statements, and those for a thousand lengths took 200 MB.
            count = 1 << (min(len(rows) - start, BATCH_SIZE).bit_length() - 1)
            parameters = tuple(chain.from_iterable(rows[start : start + count]))
            connection.exec_driver_sql(_insert_statement(engine.dialect, count), parameters)
            start += count


def _rows(batch: PredictionBatch, at: Any, audit_sample_rate: float) -> Iterator[tuple[Any, ...]]:
    """Values in the order of the columns; `at` is already converted for the driver."""
    digits = batch.probabilities.argmax(1).tolist()
    probabilities = np.maximum.reduce(batch.probabilities, axis=1).tolist()
    vectors, images = batch.probabilities.tobytes(), batch.images.tobytes()
    clients = batch.clients or [""] * len(batch.ids)
    for n, (id, digit, probability, client) in enumerate(zip(batch.ids, digits, probabilities, clients, strict=True)):
        vector, image = vectors[40 * n : 40 * (n + 1)], images[PIXELS * n : PIXELS * (n + 1)]
        is_audit = random.random() < audit_sample_rate
        yield id, at, batch.version, digit, probability, vector, image, batch.route, client, is_audit


@lru_cache
def _insert_statement(dialect: Dialect, count: int) -> str:
    placeholder = "?" if dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([placeholder] * len(_COLUMNS))})"
    names = ", ".join(column.name for column in _COLUMNS)
    return f"INSERT INTO {predictions.name} ({names}) VALUES {', '.join([row] * count)} ON CONFLICT (id) DO NOTHING"


def read_window(
    engine: Engine,
    since: datetime,
    until: datetime | None = None,
    limit: int | None = None,
    version: str | None = None,
    labelled: bool = False,
) -> PredictionWindow:
    """The predictions from `since` up to but not including `until`, or those of them that have a label.

    `limit` selects so many of them at random, but reading again returns the same: by the random digits of their ids. Every
    second or third would be a biased sample of forms that have as many boxes.
    Raises ValueError when a record does not hold an image and ten probabilities.
    """
    which = [predictions.c.at >= since]
    if until is not None:
        which.append(predictions.c.at < until)
    if version is not None:
        which.append(predictions.c.version == version)
    if labelled:
        which.append(predictions.c.id.in_(select(feedback.c.prediction_id)))
    query = with_labels().where(*which).order_by(predictions.c.at, predictions.c.id)
    if limit is not None:
        drawn = select(predictions.c.id).where(*which)
        drawn = drawn.order_by(func.substr(predictions.c.id, TIME_DIGITS + 1), predictions.c.id).limit(limit)
        query = query.where(predictions.c.id.in_(drawn))
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return PredictionWindow(
        ids=[row.id for row in rows],
        at=[row.at for row in rows],
        versions=[row.version for row in rows],
        routes=[row.route for row in rows],
        clients=[row.client for row in rows],
        images=stack(rows, "image", np.uint8, SIZE * SIZE).reshape(-1, SIZE, SIZE),
        digits=np.array([row.digit for row in rows], np.uint8),
        probabilities=stack(rows, "probabilities", np.float32, 10),
        labels=np.array([row.label for row in rows], np.int8),
        audited=np.array([row.audited for row in rows], np.bool_),
    )


def counts(engine: Engine, since: datetime, until: datetime) -> dict[str, int]:
    """The number of predictions of each version from `since` up to but not including `until`."""
    query = select(predictions.c.version, func.count()).where(predictions.c.at >= since, predictions.c.at < until)
    with engine.connect() as connection:
        return dict(row._tuple() for row in connection.execute(query.group_by(predictions.c.version)))


def start_of_newest(engine: Engine, count: int, until: datetime, version: str | None = None) -> datetime | None:
    """The time of the oldest of the newest `count` predictions before a time; None where there are fewer."""
    query = select(predictions.c.at).where(predictions.c.at < until)
    if version is not None:
        query = query.where(predictions.c.version == version)
    with engine.connect() as connection:
        return connection.scalar(query.order_by(predictions.c.at.desc()).offset(count - 1).limit(1))


def with_labels() -> Select[Any]:
    """Every prediction with its most recent label, -1 without one; an auditor's label has precedence over later ones.

    `audited` says that the prediction was drawn for the audit sample and an auditor labelled it: labels that others volunteer
    would bias the sample towards complaints.
    """
    given = feedback.alias()
    decisive = select(given.c.sequence).where(given.c.prediction_id == predictions.c.id).correlate(predictions).limit(1)
    decisive = decisive.order_by(given.c.source != AUDITOR, given.c.sequence.desc())
    return select(
        predictions,
        func.coalesce(feedback.c.label, -1).label("label"),
        feedback.c.sequence,
        feedback.c.source,
        and_(predictions.c.audit, feedback.c.source.is_not_distinct_from(AUDITOR)).label("audited"),
    ).select_from(predictions.outerjoin(feedback, feedback.c.sequence == decisive.scalar_subquery()))


def stack(rows: Sequence[Any], column: str, dtype: type[Any], length: int) -> NDArray[Any]:
    """A column of blobs as an array (n, length); raises ValueError for a blob of another size."""
    size = np.dtype(dtype).itemsize * length
    contents = [getattr(row, column) for row in rows]
    for row, content in zip(rows, contents, strict=True):
        if len(content) != size:
            raise ValueError(f"prediction {row[0]} holds {len(content)} bytes of {column}; expected {size}")
    return np.frombuffer(b"".join(contents), dtype).reshape(len(rows), length)


def find(engine: Engine, id: str) -> sa.Row[Any]:
    """The prediction with this id and its label; raises UnknownPrediction when there is none."""
    made_at(id)
    with engine.connect() as connection:
        found = connection.execute(with_labels().where(predictions.c.id == id)).one_or_none()
    if found is None:
        raise UnknownPrediction(f"no prediction has the id {quote(id)}; send the id of a prediction")
    return found


def label(engine: Engine, id: str, digit: int, source: str) -> None:
    """Record the true digit of a prediction. Earlier labels are kept, and repeating the one that counts changes nothing.

    Raises UnknownPrediction when no prediction has this id.
    """
    found = find(engine, id)
    if (found.label, found.source) != (digit, source):
        with engine.begin() as connection:
            row = {"prediction_id": id, "label": digit, "at": datetime.now(UTC), "source": source}
            connection.execute(insert(feedback), row)


def label_times(engine: Engine, source: str) -> dict[str, datetime]:
    """The time of this source's most recent label of each prediction, by the id of the prediction; UTC."""
    query = select(feedback.c.prediction_id, func.max(feedback.c.at)).where(feedback.c.source == source)
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query.group_by(feedback.c.prediction_id))}


def delete_before(engine: Engine, before: datetime) -> int:
    """Delete the predictions before a time and their labels, in one transaction per thousand. Returns their number."""
    removed = 0
    while True:
        with engine.begin() as connection:
            old = connection.scalars(select(predictions.c.id).where(predictions.c.at < before).limit(1000)).all()
            connection.execute(delete(feedback).where(feedback.c.prediction_id.in_(old)))
            connection.execute(delete(predictions).where(predictions.c.id.in_(old)))
        removed += len(old)
        if len(old) < 1000:
            return removed
