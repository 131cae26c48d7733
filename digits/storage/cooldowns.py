"""Cooldowns: times of named events that outlive processes, such as the end of the last retraining."""

from datetime import datetime

from sqlalchemy import Column, Engine, String, Table, select

from digits.storage.database import UtcDateTime, metadata, upsert

_cooldowns = Table(
    "cooldowns",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
)


def at(engine: Engine, name: str) -> datetime | None:
    """The time of the event, UTC; None before the first."""
    with engine.connect() as connection:
        return connection.scalar(select(_cooldowns.c.at).where(_cooldowns.c.name == name))


def put(engine: Engine, name: str, at: datetime) -> None:
    """Record the time of the event."""
    with engine.begin() as connection:
        upsert(connection, _cooldowns, [{"name": name, "at": at}])
