"""Cooldowns: times of named events that outlive processes, such as the end of the last retraining."""

from datetime import datetime

from sqlalchemy import Connection, Engine, String, bindparam, select, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base

RETRAINED = "retrained"  # the end of the last retraining
LABELS_CHECKED = "labels checked"  # when the check was asked for whose suspected labels are in the queue


class Cooldown(Base):
    """The time of an event."""

    __tablename__ = "cooldowns"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    at: Mapped[datetime]


def at(engine: Engine, name: str) -> datetime | None:
    """The time of the event, UTC; None before the first."""
    with Session(engine) as session:
        return session.scalar(select(Cooldown.at).where(Cooldown.name == name))


def put(engine: Engine, name: str, at: datetime) -> None:
    with Session(engine) as session, session.begin():
        session.merge(Cooldown(name=name, at=at))


def advance(connection: Connection, name: str, at: datetime) -> bool:
    """Set the time of the event unless a later one is stored; returns whether it was set."""
    event = Cooldown.name == name
    if connection.execute(update(Cooldown).where(event, Cooldown.at <= at).values(at=at)).rowcount:
        return True
    # Two transactions may both find none.
    first = text("INSERT INTO cooldowns (name, at) VALUES (:name, :at) ON CONFLICT DO NOTHING")
    typed = first.bindparams(bindparam("name", name), bindparam("at", at, type_=Cooldown.__table__.c.at.type))
    return bool(connection.execute(typed).rowcount)
