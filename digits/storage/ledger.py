"""The ledger: an append-only record of what was decided about versions and evaluation: when, by whom, for what reason, with what evidence."""

import getpass
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import JSON, Engine, String, Text, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.errors import first_line
from digits.storage.database import Base, DatabaseUnavailable

Action = Literal["promotion", "rollback", "decline", "pin", "retirement", "reinstatement", "baseline"]
# The subject of promotions and rollbacks, and of the retirement of the evaluation set of this name.
CHAMPION = "champion"


class Entry(Base):
    """One decision: a change of the champion, unless its subject is another."""

    __tablename__ = "ledger"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    action: Mapped[Action] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(64))  # what the decision is about
    before: Mapped[str | None] = mapped_column(String(64))  # of the champion: a version, None before the first
    after: Mapped[str | None] = mapped_column(String(64))
    by: Mapped[str] = mapped_column(String(128))
    reason: Mapped[str] = mapped_column(Text)
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[str | None] = mapped_column(String(64))  # of the card of the champion `after`, SHA-256 in hex

    @property
    def replaces_champion(self) -> bool:
        return self.action in ("promotion", "rollback")

    @property
    def changes_evaluation(self) -> bool:
        """Whether candidates are judged on something else from then on; a first pin keeps what the first champion was judged on."""
        is_first_pin = self.action == "pin" and self.before is None
        return self.action in ("pin", "retirement", "reinstatement") and not is_first_pin


def append(
    engine: Engine,
    action: Action,
    before: str | None,
    after: str | None,
    reason: str,
    evidence: Mapping[str, Any],
    subject: str = CHAMPION,
    digest: str | None = None,
    by: str | None = None,
) -> Entry:
    """Record a decision made just now, by the user of this process unless given. Returns the entry; raises ConnectionError where it cannot be recorded."""
    entry = Entry(at=datetime.now(UTC), action=action, subject=subject, before=before, after=after, reason=reason)
    entry.by, entry.evidence, entry.digest = by or user(), dict(evidence), digest
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            session.add(entry)
    except SQLAlchemyError as error:
        change = f"{action} of {after} (before: {before}), {reason}"
        raise ConnectionError(f"the ledger cannot record it, and nothing has changed: {change}") from error
    return entry


def entries(engine: Engine, subject: str | None = None) -> Sequence[Entry]:
    """All entries, or those about this subject, oldest first."""
    query = select(Entry).order_by(Entry.number)
    with Session(engine) as session:
        return session.scalars(query if subject is None else query.where(Entry.subject == subject)).all()


def replacements(engine: Engine) -> Sequence[Entry]:
    """The promotions and rollbacks, oldest first."""
    return [entry for entry in entries(engine, CHAMPION) if entry.replaces_champion]


def promoted_at(engine: Engine, version: str) -> datetime | None:
    """When the version last became champion, UTC; None if the ledger does not say."""
    is_replacement = Entry.action.in_(("promotion", "rollback"))
    query = select(func.max(Entry.at)).where(Entry.subject == CHAMPION, Entry.after == version, is_replacement)
    with Session(engine) as session:
        return session.scalar(query)


def promoted_digests(engine: Engine) -> set[str]:
    """The digests of all versions that were promoted or rolled back to; raises DatabaseUnavailable."""
    query = select(Entry.digest).where(Entry.digest.is_not(None)).distinct()
    try:
        with Session(engine) as session:
            return {digest for digest in session.scalars(query) if digest}
    except SQLAlchemyError as error:
        raise DatabaseUnavailable(f"the ledger cannot be read: {first_line(error)}") from error


def previous_champion(entries: Sequence[Entry], current: str) -> str | None:
    """Of these promotions and rollbacks: the champion before the current one, except those that were rolled back; None if the ledger has none."""
    champions: list[str | None] = []
    for entry in entries:
        if entry.action == "rollback":
            while champions and champions[-1] != entry.after:
                champions.pop()
        elif not champions and entry.before:
            champions.append(entry.before)
        if not champions or champions[-1] != entry.after:
            champions.append(entry.after)
    return champions[-2] if len(champions) > 1 and champions[-1] == current else None


def last_replacement(entries: Sequence[Entry], version: str) -> Entry | None:
    """Of these promotions and rollbacks: the last one that replaced the version; None if there is none."""
    return next((entry for entry in reversed(entries) if entry.before == version), None)


def user() -> str:
    """The user of this process, `name@host`."""
    try:
        name = getpass.getuser()
    # A container may run under a user id without a name.
    except (KeyError, OSError):
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
