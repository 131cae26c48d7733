"""API keys: which client may use which part of the service, and how often. A key is shown once, at its creation; only its hash is stored.

SHA-256 without salt or stretching is right here. Those protect passwords, which people choose, against guessing; a key is 256
random bits, which cannot be guessed, and a slow hash would delay every request.
"""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal, get_args

from sqlalchemy import Engine, String, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base

Role = Literal["predict", "feedback", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "digits_"  # lets scanners for leaked secrets find a key


class ApiKey(Base):
    """A key without its secret; the role `admin` includes all others."""

    __tablename__ = "api_keys"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    roles: Mapped[str] = mapped_column(String(64))  # separated by spaces
    rate_per_minute: Mapped[int | None]  # that of the settings if None
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]

    def may(self, role: Role | None) -> bool:
        """Whether the key has the role; every key has the role None."""
        return role is None or not {role, "admin"}.isdisjoint(self.roles.split())


def create(engine: Engine, name: str, roles: Iterable[str], rate_per_minute: int | None = None) -> str:
    """Create a key and return it. Names are never reused, because feedback is stored under them; raises ValueError for an invalid name or role."""
    # The log names the clients of a key as `name/id`.
    if not 0 < len(name) <= 64 or not name.isprintable() or name != name.strip() or "/" in name:
        raise ValueError(
            f"the name is {name!r}; expected 1 to 64 printable characters other than `/`, without blanks around them"
        )
    unique_roles = sorted(set(roles))
    if not unique_roles or not set(unique_roles) <= set(ROLES):
        raise ValueError(f"the roles are {', '.join(unique_roles) or 'none'}; expected some of {', '.join(ROLES)}")
    key = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(name=name, roles=" ".join(unique_roles), rate_per_minute=rate_per_minute, created_at=datetime.now(UTC))
    row.hash = digest(key.encode())
    try:
        with Session(engine) as session, session.begin():
            session.add(row)
    except IntegrityError as error:
        raise ValueError(
            f"a key {name!r} exists or was revoked (see `digits keys list`); choose another name"
        ) from error
    return key


def revoke(engine: Engine, name: str) -> None:
    """Invalidate a key; revoking it again changes nothing. Raises LookupError when there is none of this name."""
    with Session(engine) as session, session.begin():
        key = session.scalar(select(ApiKey).where(ApiKey.name == name))
        if key is None:
            raise LookupError(f"there is no key {name!r}; see them with `digits keys list`")
        key.revoked_at = key.revoked_at or datetime.now(UTC)


def by_hash(engine: Engine) -> dict[str, ApiKey]:
    """All keys, also revoked ones, by their hash; oldest first."""
    with Session(engine) as session:
        return {key.hash: key for key in session.scalars(select(ApiKey).order_by(ApiKey.number))}


def digest(key: bytes) -> str:
    """The hash of a key, 64 hex digits."""
    return hashlib.sha256(key).hexdigest()
