"""The prediction log: predictions with their images, stored in batches, labelled later by feedback, read in windows of time."""

import heapq
import math
import os
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Connection, Dialect, Engine, Row, Select, and_, delete, func, select

from digits.errors import quote
from digits.images import PIXELS, SIZE, Images, Labels
from digits.storage import database, labels
from digits.storage.labels import AUDITOR

STATEMENT_ROWS = 1024  # of 11 values; SQLite accepts 32,766 values, PostgreSQL 65,535
# Predictions in a row of the table. Larger rows would be no faster, and a row is read whole for one of its predictions.
MAX_PER_ROW = 1000
READ_ROWS = 100  # of the table, for each query or transaction
ID_BYTES = 16
TIME_DIGITS = 16  # at the start of an id; those that follow are random
_MILLISECOND_DIGITS = 12  # the first of them
_ID = re.compile(r"[0-9a-f]{32}")

_DRAWN: Any = dict.fromkeys(("sqlite_where", "postgresql_where"), sa.text("audit IS NOT NULL"))

# A row for each prediction took five times as long to write (`python -m bench.storage`).
batches = sa.Table(
    "prediction_batches",
    database.metadata,
    # The smallest one. It begins with the time, so that new rows go to the end of the index.
    sa.Column("first_id", sa.String(32), primary_key=True),
    sa.Column("at", database.UtcDateTime, nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("route", sa.String(32), nullable=False),
    sa.Column("clients", sa.Text, nullable=False),  # a JSON list: of each prediction, or one for all; "" where unknown
    # Positions as uint16 of those drawn at random for labelling, independent of complaints; NULL where none was.
    sa.Column("audit", sa.LargeBinary),
    sa.Column("ids", sa.LargeBinary, nullable=False),  # 16 bytes each, all of one millisecond
    sa.Column("probabilities", sa.LargeBinary, nullable=False),  # 10 float32 each, little-endian
    sa.Column("images", sa.LargeBinary, nullable=False),  # 28 x 28 uint8 each, row by row
    sa.Column("digit_scores", sa.LargeBinary),  # a float32 each, little-endian; NULL where the model has none
    sa.Column(
        "places", sa.Text
    ),  # a JSON list, for digits read from one picture: line, left, top, width, height of each
    sa.Index("prediction_batches_at", "at"),
    sa.Index("prediction_batches_drawn", "at", **_DRAWN),  # few rows have any
)

_COLUMNS = tuple(batches.columns)
_COUNT = func.length(batches.c.ids) / ID_BYTES


class UnknownPrediction(LookupError):
    """No prediction has this id."""


class Place(NamedTuple):
    """Where a digit stands in the picture that it was read from."""

    line: int  # from the top, counted from 0
    left: int  # pixels of the upright picture, as all that follow
    top: int
    width: int
    height: int


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
    labels: NDArray[np.int8]  # (n,), the true digit according to feedback, NO_DIGIT for none, -1 without feedback
    audited: NDArray[np.bool_]  # (n,), whether the label belongs to the audit sample
    digit_scores: NDArray[np.float32]  # (n,), NaN where unknown
    places: list[Place | None]  # of a digit that was read with others from a picture

    def __len__(self) -> int:
        return len(self.ids)


# A NamedTuple is created three times as fast as a frozen dataclass.
class PredictionBatch(NamedTuple):
    """The predictions for one or several requests; arrays of length n."""

    ids: list[str]  # of one call of `new_ids`
    at: datetime
    version: str
    images: Images  # (n, 28, 28)
    probabilities: NDArray[np.float32]  # (n, 10)
    route: str
    clients: Sequence[str] = ()  # who sent each image; empty where nobody is known
    digit_scores: NDArray[np.float32] | None = None  # (n,), NaN or None where the model has none
    places: Sequence[Place] = ()  # of digits that were read from one picture


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


def first_id_at(at: datetime) -> str:
    """The smallest id of that time."""
    return f"{max(0, int(at.timestamp() * 1000)) << 16:016x}{'0' * TIME_DIGITS}"


def append(
    engine: Engine, predicted: Iterable[PredictionBatch], audit_sample_rate: float, is_trial: bool = False
) -> None:
    """Add the predictions that are not there yet, a random share of them to the audit sample, in one statement for many rows.

    Row by row, a driver acquires and releases Python's lock each time; the requests waiting for it halved the service's speed
    (`python -m bench.serving`). A trial is rolled back. Raises ValueError for ids of another form.
    """
    as_bound: Any = batches.c.at.type.dialect_impl(engine.dialect).bind_processor(engine.dialect)
    rows = [row for batch in predicted if batch.ids for row in _rows(batch, as_bound(batch.at), audit_sample_rate)]
    with engine.connect() as connection:
        start = 0
        while start < len(rows):
            # A power of two, because drivers cache prepared statements, and those for a thousand lengths took 200 MB.
            count = 1 << (min(len(rows) - start, STATEMENT_ROWS).bit_length() - 1)
            parameters = tuple(chain.from_iterable(rows[start : start + count]))
            connection.exec_driver_sql(_insert_statement(engine.dialect, count), parameters)
            start += count
        if not is_trial:
            connection.commit()


def _rows(batch: PredictionBatch, at: Any, audit_sample_rate: float) -> Iterator[tuple[Any, ...]]:
    """Values in the order of the columns; `at` is already converted for the driver."""
    ids, clients = batch.ids, list(batch.clients) or [""] * len(batch.ids)
    # `find` looks for a prediction among the rows of its millisecond.
    per_row = MAX_PER_ROW if min(ids)[:_MILLISECOND_DIGITS] == max(ids)[:_MILLISECOND_DIGITS] else 1
    for start in range(0, len(ids), per_row):
        part = slice(start, start + per_row)
        audit = [n for n in range(len(ids[part])) if random.random() < audit_sample_rate]
        yield (
            min(ids[part]),
            at,
            batch.version,
            batch.route,
            orjson.dumps(clients[part] if len(set(clients[part])) > 1 else clients[part][:1]).decode(),
            np.array(audit, np.uint16).tobytes() if audit else None,
            bytes.fromhex("".join(ids[part])),
            batch.probabilities[part].tobytes(),
            batch.images[part].tobytes(),
            None if batch.digit_scores is None else batch.digit_scores[part].tobytes(),
            orjson.dumps(list(map(list, batch.places[part]))).decode() if batch.places else None,
        )


@lru_cache
def _insert_statement(dialect: Dialect, count: int) -> str:
    parameter = "?" if dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([parameter] * len(_COLUMNS))})"
    names = ", ".join(column.name for column in _COLUMNS)
    return f"INSERT INTO {batches.name} ({names}) VALUES {', '.join([row] * count)} ON CONFLICT DO NOTHING"


class _Place(NamedTuple):
    """Where a prediction is stored. Sorting places gives a random order that is always the same."""

    random_digits: str  # of its id
    id: str
    first_id: str  # of its row
    position: int


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
    Raises ValueError when a record does not hold an image and ten probabilities for each id.
    """
    until = until or datetime.max.replace(tzinfo=UTC)
    which = [batches.c.at >= since, batches.c.at < until]
    if version is not None:
        which.append(batches.c.version == version)
    with engine.connect() as connection:
        if not labelled and limit is None:
            return _window(connection, connection.execute(select(batches).where(*which)))
        places: Iterable[_Place]
        if labelled:
            found = _places_of(connection, labels.current())
            places = (place for place, row in found if since <= row.at < until and version in (None, row.version))
        else:
            query = select(batches.c.first_id, batches.c.ids).where(*which).execution_options(yield_per=STATEMENT_ROWS)
            places = (place for first_id, ids in connection.execute(query) for place in _places(first_id, ids))
        return _read(connection, _positions(places if limit is None else heapq.nsmallest(limit, places)))


def read_labelled(connection: Connection, given: Select[Any]) -> PredictionWindow:
    """The predictions that these labels, some of `labels.current`, belong to."""
    return _read(connection, _positions(place for place, _ in _places_of(connection, given)))


def read_audit_sample(engine: Engine, since: datetime) -> PredictionWindow:
    """The predictions since then that were drawn for the audit sample."""
    query = select(batches.c.first_id, batches.c.audit)
    with engine.connect() as connection:
        rows = connection.execute(query.where(batches.c.at >= since, batches.c.audit.is_not(None)))
        return _read(connection, {first_id: np.frombuffer(audit, np.uint16).tolist() for first_id, audit in rows})


class Known(NamedTuple):
    """What the log knows of a prediction without reading its image."""

    client: str  # who sent the image, "" where unknown
    is_drawn: bool  # for the audit sample


def known(engine: Engine, given: Select[Any]) -> dict[str, Known]:
    """What the log knows of the predictions of a query with a column `prediction_id`, by id; those that it deleted are left out."""
    with engine.connect() as connection:
        return {place.id: known_at(row, [place.position])[0] for place, row in _places_of(connection, given)}


def known_at(row: Row[Any], positions: Iterable[int]) -> list[Known]:
    """The same of positions in a row with `clients` and `audit`."""
    clients, drawn = orjson.loads(row.clients), set(np.frombuffer(row.audit or b"", np.uint16).tolist())
    return [Known(clients[n] if len(clients) > 1 else clients[0], n in drawn) for n in positions]


def read(engine: Engine, ids: Iterable[str]) -> PredictionWindow:
    """The predictions with these ids, without those that the log does not have."""
    found = []
    with engine.connect() as connection:
        for id in ids:
            with suppress(UnknownPrediction):
                found.append(_place(connection, id))
        return _read(connection, _positions(found))


def find(engine: Engine, id: str) -> PredictionWindow:
    """The prediction with this id, alone; raises UnknownPrediction when there is none."""
    with engine.connect() as connection:
        return _read(connection, _positions([_place(connection, id)]))


def _place(connection: Connection, id: str) -> _Place:
    """The place of the prediction with this id; raises UnknownPrediction where there is none."""
    made_at(id)  # checks the form
    near = batches.c.first_id <= id, batches.c.first_id >= id[:_MILLISECOND_DIGITS]
    for first_id, ids in connection.execute(select(batches.c.first_id, batches.c.ids).where(*near)):
        if place := _place_in(first_id, ids, id):
            return place
    raise UnknownPrediction(f"no prediction has the id {quote(id)}; send the id of a prediction")


def _places_of(connection: Connection, given: Select[Any]) -> Iterator[tuple[_Place, Row[Any]]]:
    """The places of labelled predictions, with time, version, clients and audit sample of their rows; without those that the log deleted."""
    label, first_id = given.subquery(), batches.c.first_id
    start = func.substr(label.c.prediction_id, 1, _MILLISECOND_DIGITS)
    near = and_(first_id <= label.c.prediction_id, first_id >= start)
    of_row = first_id, batches.c.ids, batches.c.at, batches.c.version, batches.c.clients, batches.c.audit
    # An outer join without conditions on times, because SQLite would begin an inner one with all batches of a time.
    query = select(label.c.prediction_id, *of_row).join_from(label, batches, near, isouter=True)
    # A row of a bulk request has the ids of thousands of answers.
    for row in connection.execute(query.execution_options(yield_per=50)):
        if row.ids and (place := _place_in(row.first_id, row.ids, row.prediction_id)):
            yield place, row


def _place_in(first_id: str, ids: bytes, id: str) -> _Place | None:
    """The place of a prediction in a row; None if it is in another one."""
    sought = bytes.fromhex(id)
    start = ids.find(sought)
    while start % ID_BYTES and start > 0:
        start = ids.find(sought, start + 1)
    return None if start < 0 else _Place(id[TIME_DIGITS:], id, first_id, start // ID_BYTES)


def _places(first_id: str, ids: bytes) -> Iterator[_Place]:
    """The places of all predictions of a row."""
    for position, id in enumerate(ids_of(ids)):
        yield _Place(id[TIME_DIGITS:], id, first_id, position)


def ids_of(ids: bytes) -> list[str]:
    """The ids of a row of the table."""
    return ids.hex(" ", ID_BYTES).split()


def _positions(places: Iterable[_Place]) -> dict[str, list[int]]:
    """The positions in each row by its first id."""
    positions: dict[str, list[int]] = defaultdict(list)
    for place in places:
        positions[place.first_id].append(place.position)
    return positions


def _read(connection: Connection, positions: dict[str, list[int]]) -> PredictionWindow:
    """The predictions at these positions of each row, by its first id."""
    firsts = sorted(positions)
    queries = (
        select(batches).where(batches.c.first_id.in_(firsts[start : start + READ_ROWS]))
        for start in range(0, len(firsts), READ_ROWS)
    )
    return _window(connection, (row for query in queries for row in connection.execute(query)), positions)


class _Logged(NamedTuple):
    at: datetime
    id: str
    version: str
    route: str
    client: str
    drawn: bool  # for the audit sample
    digit_score: float
    place: Place | None


def _window(
    connection: Connection, rows: Iterable[Row[Any]], positions: dict[str, list[int]] | None = None
) -> PredictionWindow:
    """The predictions at these positions of each row, or all, with their labels."""
    found: list[_Logged] = []
    images, probabilities = [np.empty((0, PIXELS), np.uint8)], [np.empty((0, 10), np.float32)]
    for row in rows:
        ids, clients = ids_of(row.ids), orjson.loads(row.clients)
        audit = set(np.frombuffer(row.audit or b"", np.uint16).tolist())
        chosen = range(len(ids)) if positions is None else positions[row.first_id]
        images.append(_array(row, "images", np.uint8, PIXELS)[chosen])
        probabilities.append(_array(row, "probabilities", np.float32, 10)[chosen])
        # Batches that were stored before there were scores have none.
        scores = [math.nan] * len(ids) if row.digit_scores is None else _array(row, "digit_scores", np.float32, 1)[:, 0]
        places = orjson.loads(row.places or "[]")
        for n in chosen:
            client = clients[n] if len(clients) > 1 else clients[0]
            place = Place(*places[n]) if places else None
            found.append(_Logged(row.at, ids[n], row.version, row.route, client, n in audit, scores[n], place))
    given = labels.read(connection, [one.id for one in found])
    return _assembled(found, np.concatenate(images), np.concatenate(probabilities), given)


def _assembled(
    found: list[_Logged], images: NDArray[np.uint8], probabilities: NDArray[np.float32], given: dict[str, Row[Any]]
) -> PredictionWindow:
    """The window of predictions in any order, with images (n, 784), probabilities (n, 10), and labels by id."""
    order = sorted(range(len(found)), key=lambda n: found[n][:2])
    logged, probabilities = [found[n] for n in order], probabilities[order]
    is_audited = (one.drawn and one.id in given and given[one.id].source == AUDITOR for one in logged)
    return PredictionWindow(
        ids=[one.id for one in logged],
        at=[one.at for one in logged],
        versions=[one.version for one in logged],
        routes=[one.route for one in logged],
        clients=[one.client for one in logged],
        images=images[order].reshape(-1, SIZE, SIZE),
        digits=probabilities.argmax(1).astype(np.uint8),
        probabilities=probabilities,
        labels=np.array([given[one.id].label if one.id in given else -1 for one in logged], np.int8),
        audited=np.fromiter(is_audited, np.bool_, len(logged)),
        digit_scores=np.array([one.digit_score for one in logged], np.float32),
        places=[one.place for one in logged],
    )


def _array(row: Row[Any], column: str, dtype: type[Any], length: int) -> NDArray[Any]:
    """A column of a row as an array (n, length) for its n ids; raises ValueError if it has another size."""
    content, count = getattr(row, column), len(row.ids) // ID_BYTES
    size = count * length * np.dtype(dtype).itemsize
    if len(content) != size:
        raise ValueError(f"the record {row.first_id} holds {len(content)} bytes of {column}; expected {size}")
    return np.frombuffer(content, dtype).reshape(count, length)


def counts(engine: Engine, since: datetime, until: datetime) -> dict[str, int]:
    """The number of predictions of each version from `since` up to but not including `until`."""
    query = select(batches.c.version, func.sum(_COUNT)).where(batches.c.at >= since, batches.c.at < until)
    with engine.connect() as connection:
        return {version: int(count) for version, count in connection.execute(query.group_by(batches.c.version))}


def counts_by_client(engine: Engine) -> Counter[str]:
    """The number of all logged predictions by who sent the image, "" where unknown."""
    query, found = select(batches.c.clients, func.sum(_COUNT)).group_by(batches.c.clients), Counter[str]()
    with engine.connect() as connection:
        for text, count in connection.execute(query):
            # One name for all images of a row, or one for each.
            names = orjson.loads(text)
            found.update({name: number * int(count) // len(names) for name, number in Counter(names).items()})
    return found


def start_of_newest(engine: Engine, count: int, until: datetime, version: str | None = None) -> datetime | None:
    """The time of the oldest of the newest `count` predictions before a time; None where there are fewer."""
    query = select(batches.c.at, _COUNT).where(batches.c.at < until).order_by(batches.c.at.desc())
    if version is not None:
        query = query.where(batches.c.version == version)
    found = 0
    with engine.connect() as connection:
        for at, in_row in connection.execute(query.execution_options(yield_per=READ_ROWS)):
            found += in_row
            if found >= count:
                return at
    return None


def label(engine: Engine, id: str, digit: int, source: str) -> int | None:
    """Record the true digit of a prediction; see `labels.add`. Raises UnknownPrediction when no prediction has this id."""
    check(engine, id)
    return labels.add(engine, id, digit, source)


def check(engine: Engine, id: str) -> None:
    """Raises UnknownPrediction when no prediction has this id."""
    with engine.connect() as connection:
        _place(connection, id)


def delete_before(engine: Engine, before: datetime) -> int:
    """Delete the predictions before a time and their labels, in a transaction for each READ_ROWS rows. Returns the number of predictions."""
    removed = 0
    while True:
        with engine.begin() as connection:
            query = select(batches.c.first_id, batches.c.ids).where(batches.c.at < before).limit(READ_ROWS)
            old = {first_id: ids_of(ids) for first_id, ids in connection.execute(query)}
            ids = {id for of_row in old.values() for id in of_row}
            labelled = sorted(ids & labels.read(connection, list(ids)).keys())
            for start in range(0, len(labelled), STATEMENT_ROWS):
                some = labelled[start : start + STATEMENT_ROWS]
                connection.execute(delete(labels.feedback).where(labels.feedback.c.prediction_id.in_(some)))
            connection.execute(delete(batches).where(batches.c.first_id.in_(old)))
        removed += len(ids)
        if len(old) < READ_ROWS:
            return removed
