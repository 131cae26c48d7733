"""The prediction log: nothing appended is lost, everything is found again, and the last word on a digit counts."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, func, select, update

from digits import database, predictions
from digits.predictions import Answers, PredictionLog, new_ids

if TYPE_CHECKING:  # a process that only imports this file need not find it
    from postgres import Postgres

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = database.connect(url)
    yield engine
    engine.dispose()


def answers(count: int = 3, at: datetime = NOON, version: str = "1", role: str = "champion", seed: int = 0) -> Answers:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(10), count).astype(np.float32)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return Answers(new_ids(count), at, version, images, probabilities, "/classify", role)


def write(url: str, spool: Path, *batches: Answers, audit_share: float = 0.0) -> None:
    log = PredictionLog(url, spool, audit_share)
    for batch in batches:
        log.append(batch)
    log.close()


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_window_gives_back_what_was_appended_oldest_first(url: str, engine: Engine, tmp_path: Path) -> None:
    early, late = answers(3), answers(2, NOON + timedelta(minutes=5), seed=1)
    write(url, tmp_path, late, early)
    window = predictions.read_window(engine, NOON)
    assert window.ids == early.ids + late.ids
    assert window.at == [NOON] * 3 + [NOON + timedelta(minutes=5)] * 2
    assert np.array_equal(window.images, np.concatenate([early.images, late.images]))
    assert np.array_equal(window.probabilities, np.concatenate([early.probabilities, late.probabilities]))
    assert np.array_equal(window.digits, window.probabilities.argmax(1))
    assert window.labels.tolist() == [-1] * 5


def test_a_window_is_cut_by_time_count_version_and_role(url: str, engine: Engine, tmp_path: Path) -> None:
    old, new = answers(3), answers(3, NOON + timedelta(hours=1), "2", seed=1)
    shadow = answers(2, NOON + timedelta(hours=1), "3", "challenger", seed=2)
    write(url, tmp_path, old, new, shadow)
    assert predictions.read_window(engine, NOON + timedelta(seconds=1)).ids == new.ids
    assert predictions.read_window(engine, NOON, NOON + timedelta(hours=1)).ids == old.ids
    assert predictions.read_window(engine, NOON, limit=6).ids == old.ids + new.ids
    assert predictions.read_window(engine, NOON, limit=4).ids == [old.ids[1], new.ids[0], new.ids[2]]  # every second
    predictions.label(engine, new.ids[1], 3, "page")
    assert predictions.read_window(engine, NOON, labelled=True).ids == [new.ids[1]]
    assert predictions.read_window(engine, NOON, version="1").ids == old.ids
    assert predictions.read_window(engine, NOON, role="challenger").versions == ["3", "3"]
    empty = predictions.read_window(engine, NOON + timedelta(days=1))
    assert len(empty) == 0 and empty.images.shape == (0, 28, 28) and empty.probabilities.shape == (0, 10)


def test_the_last_word_on_a_digit_counts_and_the_earlier_ones_stay(url: str, engine: Engine, tmp_path: Path) -> None:
    batch = answers(2)
    write(url, tmp_path, batch)
    for digit in (3, 3, 8, 8):
        predictions.label(engine, batch.ids[0], digit, "page")
    assert predictions.read_window(engine, NOON).labels.tolist() == [8, -1]
    assert predictions.find(engine, batch.ids[0]).label == 8
    with engine.connect() as connection:
        said = connection.scalars(select(predictions.feedback.c.digit).order_by(predictions.feedback.c.sequence)).all()
    assert said == [3, 8]


def test_an_answer_is_found_by_its_id(url: str, engine: Engine, tmp_path: Path) -> None:
    batch = answers(3)
    write(url, tmp_path, batch)
    found = predictions.find(engine, batch.ids[1])
    assert (found.version, found.route, found.role, found.label, found.at) == ("1", "/classify", "champion", -1, NOON)
    assert np.array_equal(found.image, batch.images[1])
    assert np.array_equal(found.probabilities, batch.probabilities[1])


def test_flushing_waits_until_all_that_was_appended_is_written(url: str, engine: Engine, tmp_path: Path) -> None:
    log = PredictionLog(url, tmp_path / "spool", interval_seconds=60)
    for seed in range(7):
        log.append(answers(1000, seed=seed))
    assert log.depth == 7000 and len(predictions.read_window(engine, NOON)) == 0
    assert log.flush()
    assert log.depth == 0 and len(predictions.read_window(engine, NOON)) == 7000
    log.close()


def test_unknown_ids_and_impossible_digits_are_refused(engine: Engine) -> None:
    with pytest.raises(predictions.UnknownPrediction, match='the id "nobody"'):
        predictions.label(engine, "nobody", 3, "page")
    with pytest.raises(LookupError, match="no prediction"):
        predictions.find(engine, "nobody")
    with pytest.raises(ValueError, match="digit is 10"):
        predictions.label(engine, "nobody", 10, "page")


def test_ids_are_unique_and_sorted_by_time() -> None:
    ids = [id for _ in range(50) for id in new_ids(100)]
    assert len(set(ids)) == 5000 and {len(id) for id in ids} == {32}
    first = new_ids()[0]
    time.sleep(0.003)
    assert first < new_ids()[0]


def test_the_id_of_an_answer_does_not_tell_those_beside_it() -> None:
    """Requests of strangers share a batch, and who has an id may read its image."""
    ids = new_ids(100)
    assert len({id[-16:] for id in ids}) == 100 and ids == sorted(ids)


def lock_table(engine: Engine) -> Connection:
    """A connection that keeps others from writing until it is closed."""
    if engine.dialect.name == "sqlite":
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection = engine.connect()
        connection.exec_driver_sql("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
    return connection


def test_appending_does_not_wait_for_a_locked_database(url: str, engine: Engine, tmp_path: Path) -> None:
    lock = lock_table(engine)
    log = PredictionLog(url, tmp_path / "spool", interval_seconds=0.01, retry_seconds=0.1)
    batches = [answers(1, seed=seed) for seed in range(200)]
    started = time.monotonic()
    for batch in batches:
        log.append(batch)
    assert time.monotonic() - started < 0.2
    wait_until(lambda: log.spooled)  # the writer gave up waiting for the lock
    lock.close()
    wait_until(lambda: log.depth == 0 and log.spooled == 0)
    log.close()
    assert len(predictions.read_window(engine, NOON)) == 200


def test_answers_spool_while_the_database_is_away_and_are_replayed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    blocked = tmp_path / "folder"
    blocked.write_text("a file where the database's folder should be")
    spool = tmp_path / "spool"
    log = PredictionLog(f"sqlite:///{blocked}/digits.db", spool, interval_seconds=0.01, retry_seconds=0.05)
    first, second = answers(3), answers(2, seed=1)
    log.append(first)
    wait_until(lambda: log.spooled == 1 and log.depth == 0)
    assert log.engine is None
    log.append(second)
    wait_until(lambda: log.spooled == 2)
    blocked.unlink()
    wait_until(lambda: log.spooled == 0 and log.engine is not None)
    log.close()
    window = predictions.read_window(database.connect(f"sqlite:///{blocked}/digits.db"), NOON)
    assert sorted(window.ids) == sorted(first.ids + second.ids)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]  # said once, not per batch


@pytest.mark.postgres
def test_a_database_server_that_stops_and_comes_back_gets_every_answer_once(
    postgres: "Postgres", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "digits")
    url, spool = postgres.new_database(), tmp_path / "spool"
    log = PredictionLog(url, spool, interval_seconds=0.01, retry_seconds=0.05)
    batches = [answers(50, seed=seed) for seed in range(5)]
    log.append(batches[0])
    assert log.flush(60)
    postgres.stop()
    try:
        for batch in batches[1:4]:
            log.append(batch)
            assert log.flush(60)  # onto the disk
        with pytest.raises(predictions.LogAway, match="send this again later"):
            log.label(batches[0].ids[0], 3, "page")
        assert log.engine is None
    finally:
        postgres.start()
    log.append(batches[4])
    wait_until(lambda: log.engine is not None and log.spooled == 0 and log.depth == 0, seconds=60)
    log.label(batches[0].ids[0], 3, "page")
    log.close()
    engine = database.connect(url)
    window = predictions.read_window(engine, NOON)
    engine.dispose()
    assert sorted(window.ids) == sorted(id for batch in batches for id in batch.ids)
    assert window.labels.tolist().count(3) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert list(spool.iterdir()) == [] and log.lost == 0


def test_a_spool_left_by_another_process_is_replayed_and_a_damaged_file_set_aside(
    url: str, engine: Engine, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    spool, batch = tmp_path / "spool", answers(4)
    write(f"sqlite:///{blocked}/digits.db", spool, batch)
    assert len(list(spool.glob("*.left"))) == 1
    (spool / "0.left").write_bytes(b"\x04\0\0\0{no}")
    write(url, spool)
    write(url, spool)
    assert predictions.read_window(engine, NOON).ids == batch.ids
    assert [path.name for path in spool.iterdir()] == ["0.damaged"]


def test_a_full_log_counts_what_it_cannot_take(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    log = PredictionLog(f"sqlite:///{blocked}/x.db", blocked / "spool", limit=5, interval_seconds=0.01)
    assert log.append(answers(4)) and log.append(answers(8, seed=1))  # a large request is not refused for its size
    assert not log.append(answers(4, seed=2))
    assert (log.depth, log.lost) == (12, 4)
    blocked.unlink()
    log.close()  # the disk is back just in time
    assert log.depth == 0


def test_the_audit_sample_is_drawn_at_random(url: str, engine: Engine, tmp_path: Path) -> None:
    write(url, tmp_path, answers(2000), audit_share=0.1)
    with engine.connect() as connection:
        drawn = connection.scalar(select(func.count()).where(predictions.predictions.c.audit)) or 0
    assert 120 < drawn < 280  # six standard deviations around 200


def test_old_answers_are_forgotten_with_their_feedback(url: str, engine: Engine, tmp_path: Path) -> None:
    old, new = answers(1500), answers(2, datetime.now(UTC), seed=1)
    write(url, tmp_path, old, new)
    predictions.label(engine, old.ids[0], 3, "page")
    predictions.label(engine, new.ids[0], 4, "page")
    PredictionLog(url, tmp_path / "spool", keep=timedelta(days=1)).close()
    window = predictions.read_window(engine, NOON)
    assert window.ids == new.ids and window.labels.tolist() == [4, -1]
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(predictions.feedback)) == 1


def test_a_damaged_record_is_named(url: str, engine: Engine, tmp_path: Path) -> None:
    batch = answers(2)
    write(url, tmp_path, batch)
    log = predictions.predictions
    with engine.begin() as connection:
        connection.execute(update(log).where(log.c.id == batch.ids[1]).values(image=b"\0"))
    with pytest.raises(ValueError, match=f"{batch.ids[1]} holds 1 bytes of image; expected 784"):
        predictions.read_window(engine, NOON)


def test_several_processes_may_make_the_tables_and_write_at_once(url: str, tmp_path: Path) -> None:
    program = (
        "import sys, tests.test_predictions as t, pathlib\n"
        "t.write(sys.argv[1], pathlib.Path(sys.argv[2]), *[t.answers(20, seed=s) for s in range(20)])"
    )
    root = Path(__file__).parent.parent
    running = [
        subprocess.Popen([sys.executable, "-c", program, url, str(tmp_path / "spool")], cwd=root) for _ in range(3)
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    write(url, tmp_path / "spool")  # replays what a busy moment may have spooled
    engine = database.connect(url)
    assert len(predictions.read_window(engine, NOON)) == 3 * 400
    engine.dispose()


def test_a_killed_process_loses_nothing_that_was_appended(url: str, engine: Engine, tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_predictions import PredictionLog, answers
log = PredictionLog({url!r}, Path({str(tmp_path)!r}) / "spool", interval_seconds=60)
for seed in range(40):
    batch = answers(3, seed=seed)
    log.append(batch)
    print(*batch.ids, flush=True)
os.kill(os.getpid(), 9)
"""
    root = Path(__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    ids = killed.stdout.split()
    assert killed.returncode == -9 and len(ids) == 120, killed.stderr
    assert len(predictions.read_window(engine, NOON)) == 0
    write(url, tmp_path / "spool", answers(1, seed=99))
    window = predictions.read_window(engine, NOON)
    assert set(ids) <= set(window.ids) and len(window) == 121
    expected = answers(3, seed=7)
    place = window.ids.index(ids[21])
    assert np.array_equal(window.images[place], expected.images[0])
    assert np.array_equal(window.probabilities[place], expected.probabilities[0])
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_damaged_journal_is_set_aside(url: str, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "1-2.journal").write_bytes(b"\x04\0\0\0{no}")
    write(url, tmp_path, answers(2))
    assert len(predictions.read_window(engine, NOON)) == 2
    assert [path.name for path in tmp_path.glob("1-2*")] == ["1-2.damaged"]


def test_neither_database_nor_disk_and_then_the_disk(
    url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a full disk cut short is written again once there is room, while the database is still away."""
    blocked, write_all = tmp_path / "blocked", os.write
    blocked.touch()
    spool = tmp_path / "spool"
    log = PredictionLog(f"sqlite:///{blocked}/digits.db", spool, interval_seconds=0.01, retry_seconds=0.05)
    monkeypatch.setattr(os, "write", lambda file, frame: write_all(file, frame[:100]))
    batches = [answers(2, seed=seed) for seed in range(10)]
    for batch in batches:
        log.append(batch)
        time.sleep(0.02)
    assert (log.depth, log.spooled) == (20, 0)
    monkeypatch.undo()
    wait_until(lambda: log.depth == 0 and log.spooled)
    log.close()
    write(url, spool)
    assert sorted(predictions.read_window(engine, NOON).ids) == sorted(id for batch in batches for id in batch.ids)
    assert list(spool.iterdir()) == []
