"""The digests of the versions that this platform trained, recorded where those who can only write to MLflow cannot add one."""

from datetime import UTC, datetime

from sqlalchemy import Engine, String
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.errors import first_line
from digits.storage.database import Base, DatabaseUnavailable


class Registration(Base):
    """One version, recorded before it is registered."""

    __tablename__ = "registrations"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)  # of its card, SHA-256 in hex
    at: Mapped[datetime]


def put(engine: Engine, digest: str) -> None:
    """Record a digest; one that is recorded already gets the present time. Raises DatabaseUnavailable."""
    try:
        with Session(engine) as session, session.begin():
            session.merge(Registration(digest=digest, at=datetime.now(UTC)))
    except SQLAlchemyError as error:
        raise DatabaseUnavailable(
            f"the version cannot be recorded before it is registered: {first_line(error)}"
        ) from error


def contains(engine: Engine, digest: str) -> bool:
    with Session(engine) as session:
        return session.get(Registration, digest) is not None
