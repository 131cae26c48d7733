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

    action: Action
    from_version: str | None
    to_version: str
    why: str
    by: str
    evidence: Mapping[str, Any]
    at: datetime  # UTC


def append(
    engine: Engine, action: Action, from_version: str | None, to_version: str, why: str, evidence: Mapping[str, Any]
) -> None:
    """Record a change of the champion, made now by the user of this process."""
    row = {
        "action": action,
        "from_version": from_version,
        "to_version": to_version,
        "why": why,
        "evidence": dict(evidence),
    }
    try:
        with engine.begin() as connection:
            connection.execute(insert(_ledger).values(at=datetime.now(UTC), by=_user(), **row))
    except SQLAlchemyError as error:
        change = f"{action} of v{to_version} (before: {from_version}), {why}"
        raise ConnectionError(f"the champion has changed, but the ledger does not take it: {change}") from error


def entries(engine: Engine) -> list[Entry]:
    """All entries, oldest first."""
    with engine.connect() as connection:
        rows = connection.execute(select(_ledger).order_by(_ledger.c.number)).mappings().all()
    return [Entry(**{name: row[name] for name in row if name != "number"}) for row in rows]


def before(book: Sequence[Entry], current: str) -> str | None:
    """The champion before the current one, without those that were rolled back; None where the ledger knows of none."""
    reign: list[str] = []
    for entry in book:
        if entry.action == "rollback":
            while reign and reign[-1] != entry.to_version:
                reign.pop()
        elif not reign and entry.from_version:
            reign.append(entry.from_version)
        if not reign or reign[-1] != entry.to_version:
            reign.append(entry.to_version)
    return reign[-2] if len(reign) > 1 and reign[-1] == current else None


def left(book: Sequence[Entry], version: str) -> Entry | None:
    """The last change away from a version that has been the champion; None where it never was."""
    return next((entry for entry in reversed(book) if entry.from_version == version), None)


def _user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id without a name
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
