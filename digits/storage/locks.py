"""A lock between all processes that decide about versions and evaluation, so that what was read still holds when the decision is recorded.

The operating system or PostgreSQL releases it when its holder dies, at once and whatever the clocks say.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

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
    with ExitStack() as held:
        try:
            if engine.dialect.name == "sqlite":
                _lock(held.enter_context(Path(f"{engine.url.database}.lock").open("a")), wait_seconds)
            else:
                # A transaction, because a pooler such as PgBouncer may give every one of them another session.
                connection = held.enter_context(engine.begin())
                connection.execute(text(f"SET LOCAL lock_timeout = {round(wait_seconds * 1000)}"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({DECISION_LOCK})"))
        except (OSError, DBAPIError) as error:
            code = getattr(getattr(error, "orig", None), "sqlstate", None)
            if isinstance(error, BlockingIOError) or code == LOCK_NOT_AVAILABLE:
                raise TimeoutError(
                    f"the promotion lock is still held by another process after {wait_seconds:g} s; "
                    "see `digits ledger`, then try again"
                ) from error
            reason = f"the promotion lock cannot be taken: {first_line(error)}"
            raise DatabaseUnavailable(f"{reason}; repair the database, then try again") from error
        yield


def _lock(file: IO[str], wait_seconds: float) -> None:
    """Lock the file; raises BlockingIOError where another process holds it for so long."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
