"""The log as the service holds it open: nothing appended is lost, whatever is away, full, killed or damaged."""

import errno
import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bentoml.exceptions import ServiceUnavailable
from conftest import wait_for
from logged import NOON, WRONG, answers, counted, write
from sqlalchemy import Connection, Engine

from digits.storage import database, predictions
from digits.storage.request_counts import Total
from services import prediction_log, write_ahead_log
from services.prediction_log import PredictionLog
from services.write_ahead_log import WriteAheadLog

if TYPE_CHECKING:  # a process that only imports this file need not find it
    from postgres import Postgres


def test_flushing_waits_until_all_that_was_appended_is_written(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    log = PredictionLog(database_url, tmp_path / "spool", interval_seconds=60)
    for seed in range(7):
        log.append(answers(1000, seed=seed))
    assert log.depth == 7000 and len(predictions.read_window(engine, NOON)) == 0
    assert log.flush()
    assert log.depth == 0 and len(predictions.read_window(engine, NOON)) == 7000
    log.close()


def lock_table(engine: Engine) -> Connection:
    """A connection that keeps others from writing until it is closed."""
    if engine.dialect.name == "sqlite":
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection = engine.connect()
        connection.exec_driver_sql("LOCK TABLE prediction_batches IN ACCESS EXCLUSIVE MODE")
    return connection


def test_appending_does_not_wait_for_a_locked_database(database_url: str, engine: Engine, tmp_path: Path) -> None:
    lock = lock_table(engine)
    log = PredictionLog(database_url, tmp_path / "spool", interval_seconds=0.01, retry_seconds=0.1)
    batches = [answers(1, seed=seed) for seed in range(200)]
    started = time.monotonic()
    for batch in batches:
        log.append(batch)
    assert time.monotonic() - started < 2  # as long as the writer waits for the lock
    wait_for(lambda: log.sealed_segments)  # the writer gave up waiting for the lock
    lock.close()
    wait_for(lambda: log.depth == 0 and log.sealed_segments == 0)
    log.close()
    assert len(predictions.read_window(engine, NOON)) == 200


def test_predictions_are_spooled_while_the_database_is_unreachable_and_written_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    blocked = tmp_path / "folder"
    blocked.write_text("a file where the database's folder should be")
    spool = tmp_path / "spool"
    log = PredictionLog(f"sqlite:///{blocked}/digits.db", spool, interval_seconds=0.01, retry_seconds=0.05)
    first, second = answers(3), answers(2, seed=1)
    log.append(first)
    wait_for(lambda: log.sealed_segments == 1 and log.depth == 0)
    assert log.engine is None
    assert log.append(second)
    time.sleep(0.2)
    # Each sealed segment would need space of its own.
    assert log.sealed_segments == 1 and log.depth == 0
    blocked.unlink()
    wait_for(lambda: log.sealed_segments == 0 and log.engine is not None)
    log.close()
    window = predictions.read_window(database.connect(f"sqlite:///{blocked}/digits.db"), NOON)
    assert sorted(window.ids) == sorted(first.ids + second.ids)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]  # said once, not per batch


def test_what_waits_for_an_unreachable_database_is_not_in_memory(tmp_path: Path) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("a file where the database's folder should be")
    log = PredictionLog(f"sqlite:///{blocked}/digits.db", tmp_path / "spool", interval_seconds=0.01, retry_seconds=0.05)
    many = [answers(1 + write_ahead_log.SEGMENT_BYTES // 784, seed=seed) for seed in range(3)]
    assert all(map(log.append, many))
    wait_for(lambda: log.sealed_segments >= 2 and log.depth == 0 and not log._wal._sealed)
    blocked.unlink()
    wait_for(lambda: log.sealed_segments == 0 and log.engine is not None)
    log.close()
    window = predictions.read_window(database.connect(f"sqlite:///{blocked}/digits.db"), NOON)
    assert sorted(window.ids) == sorted(id for batch in many for id in batch.ids)


def test_requests_are_counted_across_an_outage_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "COUNT_SECONDS", 0.01)
    blocked, since = tmp_path / "folder", datetime.now(UTC) - timedelta(minutes=30)
    blocked.write_text("a file where the database's folder should be")
    url = f"sqlite:///{blocked}/digits.db"
    log = PredictionLog(url, tmp_path / "spool", interval_seconds=0.01, retry_seconds=0.05)
    log.counter.count("/classify", 200, requests=1, images=2, uncertain=1)
    wait_for(lambda: log._retry_at)
    log.counter.count("/classify", 200, requests=1, images=1)
    blocked.unlink()
    wait_for(lambda: log.engine is not None)
    engine = database.connect(url)
    until = since + timedelta(hours=1)
    wait_for(lambda: counted(engine, since, until) == [Total("/classify", 200, 2, 3, 1)])
    monkeypatch.setattr(prediction_log, "COUNT_SECONDS", 60)
    time.sleep(0.1)
    log.counter.count("/feedback", 404, requests=1)
    log.close()
    assert counted(engine, since, until)[1:] == [Total("/feedback", 404, 1, 0, 0)]


@pytest.mark.postgres
def test_a_database_server_that_stops_and_comes_back_gets_every_answer_once(
    postgres: "Postgres", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "digits")
    database_url, spool = postgres.new_database(), tmp_path / "spool"
    log = PredictionLog(database_url, spool, interval_seconds=0.01, retry_seconds=0.05)
    batches = [answers(50, seed=seed) for seed in range(5)]
    log.append(batches[0])
    assert log.flush(60)
    postgres.stop()
    try:
        for batch in batches[1:4]:
            log.append(batch)
            assert log.flush(60)  # onto the disk
        with pytest.raises(ServiceUnavailable, match="send this again later"):
            log.label(batches[0].ids[0], 3, "page")
        assert log.engine is None
    finally:
        postgres.start()
    log.append(batches[4])
    wait_for(lambda: log.engine is not None and log.sealed_segments == 0 and log.depth == 0, seconds=60)
    log.label(batches[0].ids[0], 3, "page")
    log.close()
    engine = database.connect(database_url)
    window = predictions.read_window(engine, NOON)
    engine.dispose()
    assert sorted(window.ids) == sorted(id for batch in batches for id in batch.ids)
    assert window.labels.tolist().count(3) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert list(spool.iterdir()) == [] and log.lost == 0


def test_the_spool_of_another_process_is_recovered_and_a_damaged_file_renamed(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    spool, batch = tmp_path / "spool", answers(4)
    write(f"sqlite:///{blocked}/digits.db", spool, batch)
    assert len(list(spool.glob("*.sealed"))) == 1
    (spool / "0.sealed").write_bytes(b"\x04\0\0\0{no}")
    write(database_url, spool)
    write(database_url, spool)
    assert predictions.read_window(engine, NOON).ids == batch.ids
    assert [path.name for path in spool.iterdir()] == ["0.damaged"]


def test_a_full_log_counts_what_it_refuses(tmp_path: Path) -> None:
    log = PredictionLog(f"sqlite:///{tmp_path}/x.db", tmp_path / "spool", limit=5, interval_seconds=60)
    assert log.append(answers(4)) and log.append(answers(8, seed=1))  # a large request is not refused for its size
    assert not log.append(answers(4, seed=2))
    assert (log.depth, log.lost) == (12, 4)
    log.close()
    assert log.depth == 0


def test_several_processes_may_make_the_tables_and_write_at_once(database_url: str, tmp_path: Path) -> None:
    program = (
        "import sys, tests.logged as t, pathlib\n"
        "t.write(sys.argv[1], pathlib.Path(sys.argv[2]), *[t.answers(20, seed=s) for s in range(20)])"
    )
    root = Path(__file__).parent.parent
    running = [
        subprocess.Popen([sys.executable, "-c", program, database_url, str(tmp_path / "spool")], cwd=root)
        for _ in range(3)
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    write(database_url, tmp_path / "spool")  # replays what a busy moment may have spooled
    engine = database.connect(database_url)
    assert len(predictions.read_window(engine, NOON)) == 3 * 400
    engine.dispose()


def test_a_killed_process_loses_nothing_that_was_appended(database_url: str, engine: Engine, tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path.insert(0, "tests")
from pathlib import Path
from logged import PredictionLog, answers
log = PredictionLog({database_url!r}, Path({str(tmp_path)!r}) / "spool", interval_seconds=60)
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
    write(database_url, tmp_path / "spool", answers(1, seed=99))
    window = predictions.read_window(engine, NOON)
    assert set(ids) <= set(window.ids) and len(window) == 121
    expected = answers(3, seed=7)
    place = window.ids.index(ids[21])
    assert window.clients[place] == "writer 7"
    assert np.array_equal(window.images[place], expected.images[0])
    assert np.array_equal(window.probabilities[place], expected.probabilities[0])
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_segment_that_cannot_be_read_is_reported_once_and_the_others_are_stored(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one of root after a start with sudo; once it can be read, it is stored, too."""
    living, first = WriteAheadLog(tmp_path), answers(2)
    assert living.append(first)
    ((path, _),) = living.seal()
    living.close()
    open_file = Path.open

    def refusing(file: Path, *arguments: Any) -> Any:
        if file == path:
            raise PermissionError(errno.EACCES, "Permission denied", file)
        return open_file(file, *arguments)

    monkeypatch.setattr(Path, "open", refusing)
    log = PredictionLog(database_url, tmp_path, interval_seconds=0.01)
    for seed in range(1, 4):
        assert log.append(answers(1, seed=seed)) and log.flush()
    assert (log.depth, log.problem, log.sealed_segments) == (0, None, 1)
    assert len(predictions.read_window(engine, NOON)) == 3
    said = [record.message for record in caplog.records if record.name == "digits.write_ahead_log"]
    assert said == [f"{path} cannot be read (Permission denied); fix its permissions or move it away"]
    monkeypatch.undo()
    wait_for(lambda: log.sealed_segments == 0)
    log.close()
    assert set(first.ids) < set(predictions.read_window(engine, NOON).ids)


def test_what_is_no_prediction_is_set_aside_and_the_rest_is_stored(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """The segment keeps its whole records; a file of something else keeps its content."""
    spool = tmp_path / "spool"
    living, first, second = WriteAheadLog(spool), answers(2), answers(3, seed=1)
    assert living.append(first) and living.append(second)
    ((path, _),) = living.seal()
    living.close()
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    (spool / "1-2.wal").write_bytes(b"\x04\0\0\0{no}")
    (spool / "1-3.sealed").write_bytes(b"\x05\0\0\0null\n")
    write(database_url, spool, answers(4, seed=2))
    window = predictions.read_window(engine, NOON)
    assert len(window) == 7 and set(second.ids) < set(window.ids)
    assert {path.suffix for path in spool.iterdir()} == {".damaged"} and len(list(spool.iterdir())) == 3
    assert path.with_suffix(".damaged").read_bytes() == content


def test_what_the_database_refuses_is_set_aside_and_the_rest_is_stored(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """PostgreSQL accepts no NUL in text, and neither database a missing version."""
    refused = answers(1, seed=1)._replace(version=None)  # type: ignore[arg-type]
    written = [answers(2), refused, answers(3, seed=2)]
    if engine.dialect.name == "postgresql":
        written.append(answers(1, seed=3)._replace(route="a\0b"))
    log = PredictionLog(database_url, tmp_path, interval_seconds=60)
    assert all(map(log.append, written))
    assert log.flush()
    assert log.damaged_segments == 1 and log.problem is None
    assert log.append(answers(1, seed=4)) and log.flush()
    log.close()
    assert len(predictions.read_window(engine, NOON)) == 6


def test_a_record_of_what_no_service_logs_is_set_aside_and_the_others_are_stored(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """With a valid checksum; one such record in each of 27 segments, between two that are whole."""
    good, living = [], WriteAheadLog(tmp_path)
    for seed, fields in enumerate(WRONG.values()):
        first, last = answers(2, seed=2 * seed), answers(1, seed=2 * seed + 1)
        assert all(map(living.append, [first, answers(2)._replace(**fields), last]))
        living.seal()
        good += first.ids + last.ids
    living.close()
    log, new = PredictionLog(database_url, tmp_path, interval_seconds=0.01), answers(1, seed=99)
    assert log.append(new) and log.flush()
    wait_for(lambda: log.sealed_segments == 0)
    assert log.damaged_segments == len(WRONG) and log.problem is None
    log.close()
    assert sorted(predictions.read_window(engine, NOON).ids) == sorted([*good, *new.ids])


def test_whatever_a_record_raises_it_is_set_aside_and_the_others_are_stored(
    database_url: str, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Drivers raise ProgrammingError or InterfaceError for an object, Python TypeError or OverflowError."""
    raising = ["an object as version", "a time that is no UTC time", "a number as clients", "lists as clients"]
    log = PredictionLog(database_url, tmp_path, interval_seconds=60)
    for seed, name in enumerate(raising, 1):
        assert log.append(answers(1, seed=seed)) and log.append(answers(2)._replace(**WRONG[name]))
        assert log.flush()
    assert log.append(answers(2)) and log.append(answers(3)) and log.flush()
    assert (log.damaged_segments, log.sealed_segments, log.depth, log.problem) == (4, 0, 0, None)
    log.close()
    assert len(predictions.read_window(engine, NOON)) == 9
    assert len([one for one in caplog.records if one.message.startswith("a record cannot be stored: ")]) == 4


def test_a_table_that_refuses_everything_sets_nothing_aside(database_url: str, engine: Engine, tmp_path: Path) -> None:
    """As without the rights to write to it: SQLite and PostgreSQL raise the same for this as for a wrong record."""
    log = PredictionLog(database_url, tmp_path, interval_seconds=0.01, retry_seconds=0.05)
    assert log.append(answers(1)) and log.flush()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE prediction_batches RENAME TO hidden")
    assert log.append(answers(2, seed=1)) and log.append(answers(3, seed=2))
    wait_for(lambda: log.engine is None and log.sealed_segments)
    assert log.damaged_segments == 0
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO prediction_batches")
    wait_for(lambda: log.engine is not None and log.sealed_segments == 0)
    assert log.damaged_segments == 0
    log.close()
    assert len(predictions.read_window(engine, NOON)) == 6


def test_a_file_that_cannot_be_set_aside_does_not_hold_the_others_up(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.sealed").write_bytes(b"no record")
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path.name == "0.sealed":
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        return rename(path, target)

    living = WriteAheadLog(tmp_path)
    assert living.append(answers(2))
    living.seal()
    living.close()
    monkeypatch.setattr(Path, "rename", refusing)
    log = PredictionLog(database_url, tmp_path, interval_seconds=0.01)
    wait_for(lambda: len(predictions.read_window(engine, NOON)) == 2)
    wait_for(lambda: log.problem)
    monkeypatch.undo()
    wait_for(lambda: log.problem is None and log.damaged_segments == 1)
    log.close()


def test_a_thread_that_fails_says_so_and_goes_on(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(predictions, "append", broken)
    log = PredictionLog(database_url, tmp_path, interval_seconds=0.01)
    assert log.append(answers(3))
    wait_for(lambda: log.problem)
    assert log.problem == "predictions are not written to the database: a bug"
    monkeypatch.undo()
    wait_for(lambda: log.problem is None)
    log.close()
    assert len(predictions.read_window(engine, NOON)) == 3


def test_what_the_disk_refuses_is_counted_and_what_it_accepts_is_stored(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = os.pwritev
    log = PredictionLog(database_url, tmp_path / "spool", interval_seconds=60)
    first, second, third = (answers(2, seed=seed) for seed in range(3))
    assert log.append(first)
    monkeypatch.setattr(os, "pwritev", lambda file, parts, start: write_all(file, parts[:2], start))
    assert not log.append(second)
    monkeypatch.undo()
    assert log.append(third)
    log.close()
    assert (log.depth, log.lost) == (0, 2)
    assert sorted(predictions.read_window(engine, NOON).ids) == sorted(first.ids + third.ids)
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_old_damaged_segment_is_deleted_with_the_predictions_of_its_time(database_url: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    for name, age_days in (("old", 31), ("new", 29)):
        path = spool / f"{name}.damaged"
        path.write_bytes(b"an image")
        at = time.time() - age_days * 86400
        os.utime(path, (at, at))
    log = PredictionLog(database_url, spool, retention=timedelta(days=30), interval_seconds=60)
    assert log.flush(60)
    log.close()
    assert [path.name for path in spool.iterdir()] == ["new.damaged"]
