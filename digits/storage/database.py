"""The digits database: one engine for the prediction log and the ledger, SQLite on a laptop, PostgreSQL in production."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, DateTime, Engine, MetaData, TypeDecorator, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

log = logging.getLogger("digits.storage.database")

MIGRATIONS = Path(__file__).parent / "migrations"
UPGRADE_LOCK = 0x646967697473  # "digits", of PostgreSQL's advisory locks

metadata = MetaData()
ERRORS = (SQLAlchemyError, OSError)  # what a database that does not answer raises


class DatabaseUnavailable(ConnectionError):
    """The database does not answer."""


class SchemaTooNew(ConnectionError):
    """The schema of the database is one that this code does not know."""


class UtcDateTime(TypeDecorator[datetime]):
    """Moments with a time zone, stored as UTC: SQLite forgets the zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def connect(url: str, busy_seconds: float = 30) -> Engine:
    """An engine on a database whose schema is that of this code; the folder of a SQLite file is made when it is missing.

    `busy_seconds` is how long a writer waits for a lock of another one. Raises ValueError for the URL of another kind of
    database, Away where none answers, Newer where a newer version of this code has been.
    """
    engine = make_engine(url, busy_seconds)
    try:
        with engine.connect() as connection:
            current = _revision(connection)
        if current != _revisions()[-1]:
            _upgrade(engine)
    except DBAPIError as error:
        engine.dispose()
        raise DatabaseUnavailable(
            f"the database {engine.url!r} does not answer: {first_line(error)}; start or mend it, or set DIGITS_DATABASE_URL"
        ) from error
    return engine


def make_engine(url: str, busy_seconds: float = 30) -> Engine:
    """An engine on a database as it is, whatever its schema. Raises ValueError as `connect` does."""
    parsed = checked(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
        event.listen(engine, "connect", _write_ahead)
        return engine
    usual = {
        "connect_timeout": 5,  # seconds; libpq's own is to wait for ever
        "tcp_user_timeout": 10_000,  # milliseconds in which a machine that vanished is noticed
        "options": f"-c lock_timeout={round(busy_seconds * 1000)}",
        "application_name": "digits",
    }
    given = {name: value for name, value in usual.items() if name not in parsed.query}
    return create_engine(parsed, pool_pre_ping=True, connect_args=given)


def first_line(error: Exception) -> str:
    """What the driver says, without SQLAlchemy's additions and the statement."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def checked(url: str) -> URL:
    """The URL with the driver that is installed; raises ValueError, which must not quote it: it may hold a password."""
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


def _write_ahead(connection: Any, _record: Any) -> None:
    """Readers do not block the writer (https://www.sqlite.org/wal.html); NORMAL keeps a crash of the process harmless."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


# The schema


@lru_cache(maxsize=1)
def _revisions() -> list[str]:
    """The numbers of the migrations, oldest first; read from the names of their files, because Alembic takes 0.2 s to import."""
    return sorted(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _revision(connection: Connection) -> str | None:
    """The migration that the database is at, None before the first; raises Newer for one that is not known here."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    current: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if current is not None and current not in _revisions():
        raise SchemaTooNew(
            f"the database {connection.engine.url!r} has the schema {current}, and this version of digits knows those up to "
            f"{_revisions()[-1]}; install the version that made it, or set DIGITS_DATABASE_URL to another database"
        )
    return current


def _upgrade(engine: Engine) -> None:
    """Run the migrations that are missing, all or none; of several processes, one does and the others wait for it."""
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with _alone(engine) as connection:
        before = _revision(connection)
        if before == _revisions()[-1]:
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    if before:
        log.info("the database %r has the schema %s (before: %s)", engine.url, _revisions()[-1], before)


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other process can upgrade the schema beside."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            yield connection
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # By itself Python's driver begins a transaction before the first insert, too late for one around CREATE TABLE.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")
