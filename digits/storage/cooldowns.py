"""Cooldowns: times of named events that outlive processes, such as the end of the last retraining."""

from datetime import datetime

from sqlalchemy import Engine, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base

RETRAINED = "retrained"  # the end of the last retraining


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
