"""The labels of predictions as feedback gave them: of several, one counts; those that are taken back are deleted."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, func, insert, select

from digits.storage import database

AUDITOR = "audit"  # the source of all feedback from auditors
MAX_LISTED = 500  # ids of one query

feedback = sa.Table(
    "feedback",
    database.metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("prediction_id", sa.String(32), nullable=False, index=True),
    sa.Column("label", sa.SmallInteger, nullable=False),
    sa.Column("at", database.UtcDateTime, nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
)


def current(*which: ColumnElement[bool]) -> Select[Any]:
    """The label that counts of each prediction: the newest one, where an auditor's has precedence over later ones of others.

    `which` selects predictions by the id in `feedback`.
    """
    order = (feedback.c.source != AUDITOR, feedback.c.sequence.desc())
    rank = func.row_number().over(partition_by=feedback.c.prediction_id, order_by=order).label("rank")
    ranked = select(feedback, rank).where(*which).subquery()
    return select(*(column for column in ranked.c if column.name != "rank")).where(ranked.c.rank == 1)


def read(connection: Connection, ids: Sequence[str]) -> dict[str, Row[Any]]:
    """The labels of predictions by their id."""
    if not ids:
        return {}
    given = feedback.c.prediction_id
    # Ids begin with the time, so there are few others between many of a window.
    which = given.in_(ids) if len(ids) <= MAX_LISTED else given.between(min(ids), max(ids))
    return {row.prediction_id: row for row in connection.execute(current(which))}


def labelled(engine: Engine, ids: Sequence[str], source: str | None = None) -> set[str]:
    """Those of these predictions that this source has labelled, or with None anybody."""
    query, found = select(feedback.c.prediction_id), set[str]()
    if source is not None:
        query = query.where(feedback.c.source == source)
    with engine.connect() as connection:
        for start in range(0, len(ids), MAX_LISTED):
            some = ids[start : start + MAX_LISTED]
            found.update(connection.scalars(query.where(feedback.c.prediction_id.in_(some))))
    return found


def add(engine: Engine, id: str, digit: int, source: str) -> int | None:
    """Add a label of a prediction; returns its number. Repeating the label that counts changes nothing, then it is None."""
    with engine.begin() as connection:
        current = read(connection, [id]).get(id)
        if current is not None and (current.label, current.source) == (digit, source):
            return None
        row = {"prediction_id": id, "label": digit, "at": datetime.now(UTC), "source": source}
        return connection.scalar(insert(feedback).returning(feedback.c.sequence), row)


def times(engine: Engine, source: str) -> dict[str, datetime]:
    """The time of this source's most recent label of each prediction, by the id of the prediction; UTC."""
    query = select(feedback.c.prediction_id, func.max(feedback.c.at)).where(feedback.c.source == source)
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query.group_by(feedback.c.prediction_id))}
