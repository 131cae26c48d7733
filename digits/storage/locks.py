"""A lock between all processes that decide about versions and evaluation, so that what was read still holds when the decision is recorded.

The operating system or PostgreSQL releases it when its holder dies, at once and whatever the clocks say.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from digits.errors import first_line
from digits.storage.database import DatabaseUnavailable

DECISION_LOCK = 0x64656369646573  # "decides"; the key of an advisory lock in PostgreSQL
LOCK_NOT_AVAILABLE = "55P03"  # https://www.postgresql.org/docs/current/errcodes-appendix.html
WAIT_SECONDS = 60.0


@contextmanager
def decision(engine: Engine, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of decisions about the database; raises DatabaseUnavailable, or TimeoutError where another process holds it for so long.

    The lock of a SQLite database, which is on one machine, is a file beside it.
    """
    if engine.dialect.name == "sqlite":
        with Path(f"{engine.url.database}.lock").open("a") as file:
            _wait_for(file.fileno(), time.monotonic() + wait_seconds)
            yield
        return
    # A transaction, because a pooler such as PgBouncer may give every one of them another session.
    with engine.connect() as connection, connection.begin():
        connection.execute(text(f"SET LOCAL lock_timeout = {round(wait_seconds * 1000)}"))
        try:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({DECISION_LOCK})"))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                raise _too_long() from error
            raise DatabaseUnavailable(f"the lock of decisions cannot be taken: {first_line(error)}") from error
        yield


def _wait_for(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _too_long() from None
            time.sleep(0.02)
        else:
            return


def _too_long() -> TimeoutError:
    return TimeoutError(
        "another process is changing the champion or the evaluation; see `digits ledger`, then try again"
    )
