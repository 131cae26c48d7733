"""The lock of decisions: held by one at a time, for as long as its holder lives."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from digits.storage import locks

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
            refused = pytest.raises(TimeoutError, match="another process is changing the champion")
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
