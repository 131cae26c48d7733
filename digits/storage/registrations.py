"""The digests of the versions that this platform trained, recorded where those who can only write to MLflow cannot add one."""

from datetime import UTC, datetime

from sqlalchemy import Engine, String
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base


class Registration(Base):
    """One version, recorded before it is registered."""

    __tablename__ = "registrations"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)  # of its card, SHA-256 in hex
    at: Mapped[datetime]


def put(engine: Engine, digest: str) -> None:
    """Record a digest; one that is recorded already gets the present time."""
    with Session(engine) as session, session.begin():
        session.merge(Registration(digest=digest, at=datetime.now(UTC)))


def contains(engine: Engine, digest: str) -> bool:
    with Session(engine) as session:
        return session.get(Registration, digest) is not None
