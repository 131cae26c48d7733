"""The judgements of the gate: every comparison of a version with a champion, its significance and its decision.

They are one stream: the significance of the next judgement follows from all before it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import JSON, Engine, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base

Decision = Literal["promote", "hold", "not enough evidence"]


class Judgement(Base):
    """One comparison of a candidate with a champion."""

    __tablename__ = "judgements"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    candidate: Mapped[str] = mapped_column(String(32))  # version
    champion: Mapped[str] = mapped_column(String(32))  # version
    digest: Mapped[str | None] = mapped_column(String(64))  # of the card of the candidate, SHA-256 in hex
    conditions: Mapped[str] = mapped_column(String(32))  # hash of what was compared, and by which policy
    traffic_images: Mapped[int]  # labelled images of traffic that it was judged on
    significance: Mapped[float]  # available to it
    p_value: Mapped[float]  # the smallest of its tests, times their number
    decision: Mapped[Decision] = mapped_column(String(32))
    reasons: Mapped[list[str]] = mapped_column(JSON)
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)


def append(engine: Engine, judgement: Judgement) -> None:
    with Session(engine) as session, session.begin():
        session.add(judgement)


def decisions(engine: Engine) -> Sequence[Decision]:
    """What was decided each time, oldest first."""
    with Session(engine) as session:
        return session.scalars(select(Judgement.decision).order_by(Judgement.number)).all()


def last(engine: Engine, candidate: str, champion: str) -> Judgement | None:
    """The newest judgement of these two versions, None before the first."""
    query = select(Judgement).where(Judgement.candidate == candidate, Judgement.champion == champion)
    with Session(engine) as session:
        return session.scalars(query.order_by(Judgement.number.desc()).limit(1)).first()
