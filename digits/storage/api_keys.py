"""API keys: which client may use which part of the service, and how often. A key is shown once, at its creation; only its hash is stored.

SHA-256 without salt or stretching is right here. Those protect passwords, which people choose, against guessing; a key is 256
random bits, which cannot be guessed, and a slow hash would delay every request.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import Column, Engine, Integer, String, Table, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from digits.errors import first_line
from digits.storage.database import UtcDateTime, metadata

Role = Literal["predict", "feedback", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "digits_"  # lets scanners for leaked secrets find a key

_keys = Table(
    "api_keys",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("roles", String(64), nullable=False),  # separated by spaces
    Column("rate_per_minute", Integer),  # that of the settings if NULL
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
)


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret; the role `admin` includes all others."""

    number: int
    name: str
    roles: frozenset[Role]
    rate_per_minute: int | None
    created_at: datetime  # UTC
    revoked_at: datetime | None

    def may(self, role: Role | None) -> bool:
        """Whether the key has the role; every key has the role None."""
        return role is None or role in self.roles or "admin" in self.roles


def create(engine: Engine, name: str, roles: Iterable[str], rate_per_minute: int | None = None) -> str:
    """A new key. Names are never reused, because feedback is stored under them; raises ValueError for an invalid name, role or rate."""
    if not 0 < len(name) <= 64 or not name.isprintable() or name != name.strip():
        raise ValueError(f"the name is {name!r}; expected 1 to 64 printable characters without blanks around them")
    chosen = sorted(set(roles))
    if not chosen or not set(chosen) <= set(ROLES):
        raise ValueError(f"the roles are {', '.join(chosen) or 'none'}; expected some of {', '.join(ROLES)}")
    if rate_per_minute is not None and rate_per_minute < 1:
        raise ValueError(f"the rate is {rate_per_minute}; expected at least 1 request per minute")
    key = PREFIX + secrets.token_urlsafe(32)
    row = {"name": name, "hash": digest(key.encode()), "roles": " ".join(chosen), "rate_per_minute": rate_per_minute}
    try:
        with engine.begin() as connection:
            connection.execute(insert(_keys).values(created_at=datetime.now(UTC), **row))
    except IntegrityError as error:
        raise ValueError(f"a key {name!r} exists or was revoked; choose another name") from error
    return key


def revoke(engine: Engine, name: str) -> None:
    """Invalidate a key; revoking it again changes nothing. Raises LookupError when there is none of this name."""
    with engine.begin() as connection:
        if connection.scalar(select(_keys.c.number).where(_keys.c.name == name)) is None:
            raise LookupError(f"there is no key {name!r}; see them with `digits keys list`")
        valid = update(_keys).where(_keys.c.name == name, _keys.c.revoked_at.is_(None))
        connection.execute(valid.values(revoked_at=datetime.now(UTC)))


def by_hash(engine: Engine) -> dict[str, ApiKey]:
    """All keys, also revoked ones, by their hash; oldest first. Raises ConnectionError where the database is unreachable."""
    try:
        with engine.connect() as connection:
            rows = connection.execute(select(_keys).order_by(_keys.c.number)).all()
    except DBAPIError as error:
        raise ConnectionError(f"the API keys cannot be read from the database: {first_line(error)}") from error
    return {row.hash: _api_key(row) for row in rows}


def _api_key(row: Any) -> ApiKey:
    roles = frozenset(role for role in ROLES if role in row.roles.split())
    return ApiKey(row.number, row.name, roles, row.rate_per_minute, row.created_at, row.revoked_at)


def digest(key: bytes) -> str:
    """The hash of a key, 64 hex digits."""
    return hashlib.sha256(key).hexdigest()
