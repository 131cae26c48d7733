"""The ledger: an append-only record of promotions and rollbacks: when, from, to, by whom, why, with what evidence."""

import getpass
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import JSON, Column, Engine, Integer, String, Table, Text, insert, select
from sqlalchemy.exc import SQLAlchemyError

from digits.storage.database import UtcDateTime, metadata

Action = Literal["promotion", "rollback"]

_ledger = Table(
    "ledger",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("action", String(16), nullable=False),
    Column("from_version", String(32)),
    Column("to_version", String(32), nullable=False),
    Column("by", String(128), nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", JSON, nullable=False),
)


@dataclass(frozen=True)
class Entry:
    """One change of the champion."""

    at: datetime  # UTC
    action: Action
    from_version: str | None
    to_version: str
    by: str
    why: str
    evidence: Mapping[str, Any]


def append(
    engine: Engine, action: Action, from_version: str | None, to_version: str, why: str, evidence: Mapping[str, Any]
) -> None:
    """Record a change of the champion that the user of this process made just now."""
    entry = Entry(datetime.now(UTC), action, from_version, to_version, _user(), why, dict(evidence))
    try:
        with engine.begin() as connection:
            connection.execute(insert(_ledger), vars(entry))
    except SQLAlchemyError as error:
        change = f"{action} of v{to_version} (before: {from_version}), {why}"
        raise ConnectionError(f"the champion has changed, but the ledger does not record it: {change}") from error


def entries(engine: Engine) -> list[Entry]:
    """All entries, oldest first."""
    columns = [column for column in _ledger.columns if column.name != "number"]
    with engine.connect() as connection:
        return [Entry(*row) for row in connection.execute(select(*columns).order_by(_ledger.c.number))]


def previous_champion(entries: Sequence[Entry], current: str) -> str | None:
    """The champion before the current one, except those that were rolled back; None if the ledger has none."""
    champions: list[str] = []
    for entry in entries:
        if entry.action == "rollback":
            while champions and champions[-1] != entry.to_version:
                champions.pop()
        elif not champions and entry.from_version:
            champions.append(entry.from_version)
        if not champions or champions[-1] != entry.to_version:
            champions.append(entry.to_version)
    return champions[-2] if len(champions) > 1 and champions[-1] == current else None


def last_replacement(entries: Sequence[Entry], version: str) -> Entry | None:
    """The last entry that replaced the version as champion; None if there is none."""
    return next((entry for entry in reversed(entries) if entry.from_version == version), None)


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id without a name
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
