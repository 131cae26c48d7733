"""The digits database: one engine for the prediction log and the ledger, SQLite on a laptop, PostgreSQL in production."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Engine, MetaData, TypeDecorator, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

metadata = MetaData()


class UtcDateTime(TypeDecorator[datetime]):
    """Moments with a time zone, stored as UTC: SQLite forgets the zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def connect(url: str, busy_seconds: float = 30) -> Engine:
    """An engine with its tables in place; the folder of a SQLite file is made when it is missing.

    `busy_seconds` is how long a SQLite writer waits for another one.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_pre_ping=True)
    else:
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
        event.listen(engine, "connect", _write_ahead)
    try:
        metadata.create_all(engine)
    except (IntegrityError, OperationalError, ProgrammingError):
        metadata.create_all(engine)  # another process may have made the same tables between the look and the making
    return engine


def _write_ahead(connection: Any, _record: Any) -> None:
    """Readers do not block the writer (https://www.sqlite.org/wal.html); NORMAL keeps a crash of the process harmless."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
