"""API keys: who may ask the service for what, and how often. A key is shown once, when it is made; kept is only its hash.

SHA-256 without salt or stretching is right here. Those slow down the guessing of passwords, which people choose; a key is 256 random
bits, so there is no list to try, and a request is not held up by a hash that is slow on purpose.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from sqlalchemy import Column, Engine, Integer, String, Table, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from digits.storage.database import UtcDateTime, metadata

Role = Literal["predict", "feedback", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "digits_"  # by which scanners for leaked secrets find a key

_keys = Table(
    "api_keys",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("roles", String(64), nullable=False),  # with a space between them
    Column("rate_per_minute", Integer),  # that of the settings where there is none
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
)


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key; `admin` may do what every role may."""

    number: int
    name: str
    roles: frozenset[Role]
    rate_per_minute: int | None
    created_at: datetime  # UTC
    revoked_at: datetime | None

    def may(self, role: Role | None) -> bool:
        """Whether the key holds the role; None is what every key may."""
        return role is None or role in self.roles or "admin" in self.roles


def create(engine: Engine, name: str, roles: Iterable[str], rate_per_minute: int | None = None) -> str:
    """A new key. Names are never used again: feedback is kept under them. Raises ValueError for a bad or known name, or no role."""
    if not 0 < len(name) <= 64 or not name.isprintable() or name != name.strip():
        raise ValueError(f"the name is {name!r}; expected 1 to 64 printable characters without blanks around them")
    wanted = sorted(set(roles))
    if not wanted or not set(wanted) <= set(ROLES):
        raise ValueError(f"the roles are {', '.join(wanted) or 'none'}; expected some of {', '.join(ROLES)}")
    if rate_per_minute is not None and rate_per_minute < 1:
        raise ValueError(f"the rate is {rate_per_minute}; expected at least 1 request per minute")
    key = PREFIX + secrets.token_urlsafe(32)
    row = {
        "name": name,
        "hash": digest(key.encode()),
        "roles": " ".join(wanted),
        "rate_per_minute": rate_per_minute,
        "created_at": datetime.now(UTC),
    }
    try:
        with engine.begin() as connection:
            connection.execute(insert(_keys), row)
    except IntegrityError as error:
        raise ValueError(f"there is a key {name!r} already, if only a revoked one; choose another name") from error
    return key


def revoke(engine: Engine, name: str) -> None:
    """From now on the key opens nothing; raises LookupError when there is none of this name. Revoking twice changes nothing."""
    known = select(_keys.c.number).where(_keys.c.name == name)
    valid = update(_keys).where(_keys.c.name == name, _keys.c.revoked_at.is_(None))
    with engine.begin() as connection:
        if connection.scalar(known) is None:
            raise LookupError(f"there is no key {name!r}; see them with `digits keys list`")
        connection.execute(valid.values(revoked_at=datetime.now(UTC)))


def by_hash(engine: Engine) -> dict[str, ApiKey]:
    """Every key, revoked ones too, by the hash it is known by; oldest first. Raises ConnectionError where the database does not answer."""
    try:
        with engine.connect() as connection:
            rows = connection.execute(select(_keys).order_by(_keys.c.number)).all()
    except DBAPIError as error:
        raise ConnectionError(f"the database does not tell the API keys: {error.orig}") from error
    return {
        row.hash: ApiKey(
            row.number,
            row.name,
            frozenset(role for role in ROLES if role in row.roles.split()),
            row.rate_per_minute,
            row.created_at,
            row.revoked_at,
        )
        for row in rows
    }


def digest(key: bytes) -> str:
    """The hash that a key is known by, 64 hex digits."""
    return hashlib.sha256(key).hexdigest()
