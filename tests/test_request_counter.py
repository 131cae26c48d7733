"""The counts of a worker: none is lost or doubled by threads or by a database that is unreachable, and they stay few."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from logged import counted
from sqlalchemy import Engine

from digits.storage import database
from digits.storage.request_counts import Total
from services.request_counter import RequestCounter

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The present, as a list of one number of seconds that a test may change."""
    now = [NOON.timestamp()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_counts_belong_to_their_minute(engine: Engine, clock: list[float]) -> None:
    counter = RequestCounter()
    counter.count("/classify", 200, images=3, uncertain=1)
    counter.count("/classify", 200, requests=1)
    counter.count("/classify", 422, requests=1)
    clock[0] += 60
    counter.count("/classify", 200, requests=1, images=1)
    counter.store(engine)
    minute = timedelta(minutes=1)
    assert counted(engine, NOON, NOON + minute) == [
        Total("/classify", 200, 1, 3, 1),
        Total("/classify", 422, 1, 0, 0),
    ]
    assert counted(engine, NOON + minute, NOON + 2 * minute) == [Total("/classify", 200, 1, 1, 0)]


def test_what_is_stored_is_not_stored_again(engine: Engine, clock: list[float]) -> None:
    counter = RequestCounter()
    for _ in range(3):
        counter.count("/about", 200, requests=1)
        counter.store(engine)
        counter.store(engine)
    assert counted(engine, NOON, NOON + HOUR) == [Total("/about", 200, 3, 0, 0)]


def test_nothing_is_lost_while_the_database_is_unreachable_for_an_hour(
    engine: Engine, tmp_path: Path, clock: list[float]
) -> None:
    counter = RequestCounter()
    missing = database.make_engine(f"sqlite:///{tmp_path}/none/digits.db")
    for _ in range(60):
        for status in range(400, 410):
            counter.count("/classify", status, requests=2)
        with pytest.raises(database.ERRORS):
            counter.store(missing)
        clock[0] += 60
    counter.store(engine)
    found = counted(engine, NOON, NOON + HOUR)
    assert found == [Total("/classify", status, 120, 0, 0) for status in range(400, 410)]


def test_threads_lose_no_count(engine: Engine, clock: list[float]) -> None:
    counter = RequestCounter()

    def count() -> None:
        for _ in range(2000):
            counter.count("/classify", 200, requests=1, images=2)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        counter.store(engine)
    counter.store(engine)
    assert counted(engine, NOON, NOON + HOUR) == [Total("/classify", 200, 8000, 16000, 0)]


def test_the_oldest_minutes_are_forgotten_when_there_are_too_many_counts(engine: Engine, clock: list[float]) -> None:
    counter = RequestCounter(limit=10)
    for _ in range(30):
        counter.count("/classify", 200, requests=1)
        counter.count("/classify", 422, requests=1)
        clock[0] += 60
    counter.store(engine)
    kept = counted(engine, NOON, NOON + HOUR)
    assert kept == [Total("/classify", status, 6, 0, 0) for status in (200, 422)]
    assert counted(engine, NOON + timedelta(minutes=24), NOON + HOUR) == kept
