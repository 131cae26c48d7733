"""Marks: a few names with a moment each that outlive processes, like when the last retraining ended."""

from datetime import datetime

from sqlalchemy import Column, Engine, String, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from digits.storage.database import UtcDateTime, metadata

_cooldowns = Table(
    "cooldowns",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
)


def at(engine: Engine, name: str) -> datetime | None:
    """The moment of this name, UTC; None before it was first set."""
    with engine.connect() as connection:
        return connection.scalar(select(_cooldowns.c.at).where(_cooldowns.c.name == name))


def put(engine: Engine, name: str, at: datetime) -> None:
    """Set the moment of this name."""
    build = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    row = build(_cooldowns).values(name=name, at=at)
    with engine.begin() as connection:
        connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"at": row.excluded.at}))
