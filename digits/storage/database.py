"""The database of predictions, feedback, ledger and API keys: SQLite on a laptop, PostgreSQL in production."""

import logging
import sqlite3
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, TypeDecorator, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase

from digits.errors import first_line

log = logging.getLogger("digits.storage.database")

MIGRATIONS = Path(__file__).parent / "migrations"
UPGRADE_LOCK = 0x646967697473  # "digits"; the key of an advisory lock in PostgreSQL
POSTGRESQL_OPTIONS = {
    "connect_timeout": 5,  # seconds; by default libpq waits without a limit
    "tcp_user_timeout": 10_000,  # milliseconds until a vanished server is noticed
    "application_name": "digits",
}

CHECKPOINT_BYTES = 8 * 2**20
WAL_ATTEMPTS = 100  # 0.02 s apart

_upgrading = threading.Lock()
ERRORS = (SQLAlchemyError, OSError)  # what an unreachable database raises


class DatabaseUnavailable(ConnectionError):
    """The database is unreachable, or a newer version of this code has upgraded its schema."""


OUTAGES = (SQLAlchemyError, DatabaseUnavailable)  # the same, where OSError may also come from another file
INTERRUPTIONS = (OperationalError, DatabaseUnavailable, MemoryError)  # what says nothing about the values to be stored


class UtcDateTime(TypeDecorator[datetime]):
    """Times with a time zone, stored as UTC: SQLite does not store the zone."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {datetime: UtcDateTime}


metadata = Base.metadata


def connect(url: str, busy_seconds: float = 30) -> Engine:
    """An engine on a database that is upgraded to the schema of this code; creates the folder of a SQLite file.

    `busy_seconds` is how long a writer waits for the lock of another one. Raises ValueError for the URL of another kind of
    database, DatabaseUnavailable.
    """
    try:
        engine = make_engine(url, busy_seconds)
    except OSError as error:
        reason = f"the folder of the database cannot be created: {first_line(error)}"
        raise DatabaseUnavailable(f"{reason}; set DIGITS_DATABASE_URL or DIGITS_HOME") from error
    try:
        with engine.connect() as connection:
            current = _revision(connection)
        if current != _revisions()[-1]:
            _upgrade(engine)
    except DBAPIError as error:
        engine.dispose()
        reason = f"the database {engine.url!r} is unreachable: {first_line(error)}"
        raise DatabaseUnavailable(f"{reason}; start or repair it, or set DIGITS_DATABASE_URL") from error
    return engine


def make_engine(url: str, busy_seconds: float = 30) -> Engine:
    """An engine on a database whatever its schema; raises ValueError as `connect` does."""
    parsed = checked(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
        event.listen(engine, "connect", _set_sqlite_pragmas)
        return engine
    options = {**POSTGRESQL_OPTIONS, "options": f"-c lock_timeout={round(busy_seconds * 1000)}"}
    missing = {name: value for name, value in options.items() if name not in parsed.query}
    return create_engine(parsed, pool_pre_ping=True, connect_args=missing)


def checked(url: str) -> URL:
    """The URL with the installed driver; raises ValueError, which does not quote it: it may hold a password."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("expected a database like postgresql://user:password@host/digits, got no URL") from error
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ValueError(f"expected a database sqlite:///… or postgresql://…, got {backend}://…")
    return parsed


def _set_sqlite_pragmas(connection: Any, _record: Any) -> None:
    """Use a write-ahead log, so that readers do not block the writer; NORMAL loses nothing when the process crashes."""
    # Of a new file; images fill pages of 4 kB badly, and writing a thousand predictions took half as long again (`python -m bench.storage`).
    connection.execute("PRAGMA page_size=32768")
    for attempt in count(1):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # Of two processes that open a new file at once, SQLite refuses one without waiting for its timeout.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt == WAL_ATTEMPTS:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=NORMAL")
    # With more, a checkpoint would hold the prediction log up for half a second.
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_BYTES // page_bytes}")


# The schema


@lru_cache(maxsize=1)
def _revisions() -> list[str]:
    """The numbers of the migrations, oldest first, from the names of their files: Alembic takes 0.2 s to import."""
    return sorted(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _revision(connection: Connection) -> str | None:
    """The latest migration of the database, None before the first; raises DatabaseUnavailable for one that this code lacks."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    current: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if current is not None and current not in _revisions():
        known = f"this version of digits knows those up to {_revisions()[-1]}"
        found = f"the database {connection.engine.url!r} has the schema {current}, and {known}"
        raise DatabaseUnavailable(f"{found}; install a newer version, or set DIGITS_DATABASE_URL to another database")
    return current


def _upgrade(engine: Engine) -> None:
    """Run the missing migrations, all or none. Of several processes one runs them, and the others wait for it."""
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    is_sqlite = engine.dialect.name == "sqlite"
    # Alembic keeps the migration in progress in a global variable, so threads take turns, too.
    with _upgrading, engine.begin() as connection:
        # Python's driver for SQLite begins a transaction only before the first insert, too late for one around CREATE TABLE.
        connection.execute(text("BEGIN IMMEDIATE" if is_sqlite else f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})"))
        before = _revision(connection)
        if before == _revisions()[-1]:
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    if before:
        log.info("upgraded the schema of %r from %s to %s", engine.url, before, _revisions()[-1])
