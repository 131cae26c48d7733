"""The lock of decisions: held by one at a time, for as long as its holder lives."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import find_free_port
from sqlalchemy import Engine

from digits.storage import database, locks

ROOT = Path(__file__).parent.parent
HOLDER = """
import sys, time
from digits.storage import database, locks
with locks.decision(database.connect(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_is_refused_while_another_process_holds_it_and_free_once_that_is_killed(
    engine: Engine, database_url: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, database_url], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            refused = pytest.raises(
                TimeoutError, match=r"still held by another process after 0\.2 s; see `digits ledger`"
            )
            with refused, locks.decision(engine, wait_seconds=0.2):
                pass
        finally:
            holder.kill()
    started = time.monotonic()
    with locks.decision(engine):
        assert time.monotonic() - started < 10


def test_an_error_under_the_lock_is_raised_as_it_is_and_frees_it(engine: Engine) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="of the block"), locks.decision(engine, wait_seconds=1):
            raise ValueError("of the block")


def test_an_unreachable_database_is_reported_as_one(tmp_path: Path) -> None:
    for url, reason in (
        (f"postgresql://digits:hush@127.0.0.1:{find_free_port()}/digits", "refused"),
        (f"sqlite:///{tmp_path}/gone/digits.db", "No such file or directory"),
    ):
        engine = database.make_engine(url)
        if engine.dialect.name == "sqlite":
            (tmp_path / "gone").rmdir()
        unavailable = pytest.raises(database.DatabaseUnavailable, match=f"promotion lock cannot be taken: .*{reason}")
        with unavailable as error, locks.decision(engine):
            pass
        assert "hush" not in str(error.value)
