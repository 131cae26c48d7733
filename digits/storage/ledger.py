"""The ledger: an append-only record of promotions and rollbacks: when, from, to, by whom, for what reason, with what evidence."""

import getpass
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import JSON, Engine, String, Text, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base

Action = Literal["promotion", "rollback"]


class Entry(Base):
    """One change of the champion."""

    __tablename__ = "ledger"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    action: Mapped[Action] = mapped_column(String(16))
    from_version: Mapped[str | None] = mapped_column(String(32))
    to_version: Mapped[str] = mapped_column(String(32))
    by: Mapped[str] = mapped_column(String(128))
    reason: Mapped[str] = mapped_column(Text)
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)


def append(
    engine: Engine, action: Action, from_version: str | None, to_version: str, reason: str, evidence: Mapping[str, Any]
) -> None:
    """Record a change of the champion that the user of this process made just now."""
    entry = Entry(at=datetime.now(UTC), action=action, from_version=from_version, to_version=to_version, reason=reason)
    entry.by, entry.evidence = _user(), dict(evidence)
    try:
        with Session(engine) as session, session.begin():
            session.add(entry)
    except SQLAlchemyError as error:
        change = f"{action} of v{to_version} (before: {from_version}), {reason}"
        raise ConnectionError(f"the champion has changed, but the ledger does not record it: {change}") from error


def entries(engine: Engine) -> Sequence[Entry]:
    """All entries, oldest first."""
    with Session(engine) as session:
        return session.scalars(select(Entry).order_by(Entry.number)).all()


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
    # A container may run under a user id without a name.
    except (KeyError, OSError):
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
