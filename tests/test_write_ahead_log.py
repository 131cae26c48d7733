"""The write-ahead log: whole records of a killed process are recovered by the next one, and no segment stays behind."""

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged import WRONG, answers

from bench.faults import small_disk
from digits.storage.predictions import PredictionBatch
from services import write_ahead_log
from services.write_ahead_log import ACTIVE, SEALED, WriteAheadLog, segments

ROOT = Path(__file__).parent.parent
ONE, TWO = answers(1), answers(2, seed=1)


def recovered(folder: Path) -> list[str]:
    """The ids in the segments that no process writes."""
    found = write_ahead_log.read(segments(folder, SEALED, ACTIVE))
    return [id for _, contents in found for batch in contents.batches for id in batch.ids]


def die(folder: Path, program: str) -> list[str]:
    """Run the program with a write-ahead log `wal` in the folder until it kills itself; the words that it printed."""
    start = f"""
import os, sys
sys.path.insert(0, "tests")
from pathlib import Path
from logged import answers
from services.write_ahead_log import WriteAheadLog
wal = WriteAheadLog(Path({str(folder)!r}))
def append(batch):
    wal.append(batch)
    print(*batch.ids, flush=True)
"""
    command = [sys.executable, "-c", f"{start}\n{program}\nos.kill(os.getpid(), 9)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    return done.stdout.split()


def test_the_records_of_a_killed_process_are_recovered_in_order(tmp_path: Path) -> None:
    ids = die(tmp_path, "append(answers(1)); append(answers(3)); append(answers(200))")
    assert len(ids) == 204 and recovered(tmp_path) == ids


def test_a_record_holds_all_that_the_database_needs(tmp_path: Path) -> None:
    living = WriteAheadLog(tmp_path)
    assert living.append(TWO)
    ((path, handed_over),) = living.seal()
    (batch,), damaged_bytes = write_ahead_log.parse(path, path.read_bytes())
    assert damaged_bytes == 0 and handed_over == ([TWO], 0)
    assert (batch.ids, batch.at, batch.version, batch.route) == (TWO.ids, TWO.at, TWO.version, TWO.route)
    assert batch.clients == ["writer 1"] * 2
    assert np.array_equal(batch.images, TWO.images) and np.array_equal(batch.probabilities, TWO.probabilities)


def test_the_segment_of_a_running_process_is_not_recovered_by_others(tmp_path: Path) -> None:
    living = WriteAheadLog(tmp_path)
    living.append(ONE)
    assert recovered(tmp_path) == [] and len(list(tmp_path.glob("*.wal"))) == 1
    living.seal()
    assert recovered(tmp_path) == ONE.ids


def test_a_segment_is_handed_over_once_it_is_long_or_wanted(tmp_path: Path) -> None:
    living = WriteAheadLog(tmp_path)
    assert living.seal() == [] and list(tmp_path.iterdir()) == []
    living.append(ONE)
    assert [path for path, _ in living.seal()] == segments(tmp_path, SEALED) and living.seal() == []
    long = answers(1 + write_ahead_log.SEGMENT_BYTES // 784)
    living.append(long)
    assert len(segments(tmp_path, SEALED)) == 1
    living.append(TWO)
    assert len(segments(tmp_path, SEALED)) == 2
    assert len(living.seal()) == 2 and recovered(tmp_path) == ONE.ids + long.ids + TWO.ids
    living.seal()


def test_what_is_no_whole_record_is_counted_and_the_others_are_kept(tmp_path: Path) -> None:
    batches = [answers(count, seed=count) for count in (1, 2, 3, 1, 2, 3)]
    living = WriteAheadLog(tmp_path)
    assert all(map(living.append, batches))
    ((path, _),) = living.seal()
    content = path.read_bytes()
    assert write_ahead_log.parse(path, content).damaged_bytes == 0
    random = np.random.default_rng(0)
    for position in random.integers(len(content), size=300).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        found, damaged_bytes = write_ahead_log.parse(path, bytes(damaged))
        assert_kept(found, batches, lost=1)
        assert 0 < damaged_bytes < len(content) / 3
    for cut in range(1, 2000, 37):
        found, damaged_bytes = write_ahead_log.parse(path, content[:-cut])
        assert_kept(found, batches, lost=1)
        assert damaged_bytes > 0
    # A block of a disk that is lost costs the records that it touches.
    found, _ = write_ahead_log.parse(path, content[:1000] + bytes(4096) + content[5096:])
    assert_kept(found, batches, lost=3)


def assert_kept(found: list[PredictionBatch], batches: list[PredictionBatch], lost: int) -> None:
    """All but so many, in their order, each as it was."""
    by_id = {batch.ids[0]: batch for batch in batches}
    ids = [batch.ids[0] for batch in found]
    assert len(ids) >= len(batches) - lost and ids == [id for id in by_id if id in ids]
    for batch in found:
        expected = by_id[batch.ids[0]]
        assert batch.ids == expected.ids and batch.at == expected.at and batch.clients == expected.clients
        assert np.array_equal(batch.images, expected.images)
        assert np.array_equal(batch.probabilities, expected.probabilities)


def test_the_rest_of_a_killed_process_segment_is_no_damage(tmp_path: Path) -> None:
    ids = die(tmp_path, "append(answers(1)); append(answers(2))")
    (path,) = tmp_path.glob("*.wal")
    content = path.read_bytes()
    assert len(content) == write_ahead_log.SEGMENT_BYTES
    found, damaged_bytes = write_ahead_log.parse(path, content)
    assert [id for batch in found for id in batch.ids] == ids and damaged_bytes == 0


@pytest.mark.parametrize("head", [b"null", b"[]", b"{}", b"[null,null,null,null,null]", b'[["x"],1,2,3,4]', b"\xff"])
def test_a_whole_record_of_something_else_is_damage(head: bytes, tmp_path: Path) -> None:
    sync_marker = bytes(range(8))
    path = tmp_path / f"1-2-{sync_marker.hex()}.sealed"
    content = head + b"\n" + bytes(824)
    record = write_ahead_log._header(sync_marker, [content]) + content
    parts = write_ahead_log._encode(ONE)
    whole = b"".join([write_ahead_log._header(sync_marker, parts), *parts])
    found, damaged_bytes = write_ahead_log.parse(path, record + whole)
    assert [batch.ids for batch in found] == [ONE.ids] and damaged_bytes == len(record)
    found, damaged_bytes = write_ahead_log.parse(path, b"abc" + whole + b"abc" + whole)
    assert [batch.ids for batch in found] == [ONE.ids] * 2 and damaged_bytes == 6


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
def test_a_record_of_what_no_service_logs_is_damage(fields: dict[str, Any], tmp_path: Path) -> None:
    living, last = WriteAheadLog(tmp_path), answers(3, seed=2)
    assert all(map(living.append, [ONE, TWO._replace(**fields), last]))
    ((path, _),) = living.seal()
    found, damaged_bytes = write_ahead_log.parse(path, path.read_bytes())
    assert [batch.ids for batch in found] == [ONE.ids, last.ids] and damaged_bytes > 784


def test_all_that_a_service_logs_is_read_again(tmp_path: Path) -> None:
    """Clients have the name of an API key, which need not be ASCII, and ids of 64 characters; probabilities are rounded."""
    living = WriteAheadLog(tmp_path)
    certain = np.eye(10, dtype=np.float32)[:2] * np.float32(1.001)
    written = [
        ONE._replace(clients=[]),
        TWO._replace(clients=["", "Zoë/" + "~" * 60], version="release-2026.11", route="/classify_bulk"),
        TWO._replace(ids=answers(2).ids, probabilities=certain),
    ]
    assert all(map(living.append, written))
    ((path, _),) = living.seal()
    found, damaged_bytes = write_ahead_log.parse(path, path.read_bytes())
    assert [(batch.ids, batch.clients, batch.version, batch.route) for batch in found] == [
        (batch.ids, batch.clients, batch.version, batch.route) for batch in written
    ]
    assert damaged_bytes == 0


def test_the_time_for_a_damaged_file_is_proportional_to_its_length() -> None:
    """Each header claims that its record lasts until the end of the file."""
    sync_marker = bytes(range(8))
    path, size, count = Path(f"1-2-{sync_marker.hex()}.sealed"), write_ahead_log._HEADER.size, 100_000
    lengths = range((count - 1) * size, -1, -size)
    content = b"".join(write_ahead_log._HEADER.pack(sync_marker, 1, length, 0) for length in lengths)
    started = time.process_time()
    assert write_ahead_log.parse(path, content) == ([], len(content))
    assert time.process_time() - started < 5  # 0.1 s; with each length checksummed, 20 s


def test_a_file_that_is_too_large_for_a_segment_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "1-2-0001020304050607.sealed"
    with path.open("wb") as file:
        file.truncate(400_000_000)
    tracemalloc.start()
    try:
        assert [*write_ahead_log.read([path])] == [*write_ahead_log.read([path])] == [(path, ([], 400_000_000))]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    said = [record.message for record in caplog.records]
    assert said == [f"{path} holds 400,000,000 bytes, more than a segment can; it is set aside unread"]


def test_what_no_segment_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_ahead_log, "MAX_SEGMENT_BYTES", 2000)
    living = WriteAheadLog(tmp_path)
    assert living.append(TWO) and not living.append(answers(3))
    living.seal()
    assert recovered(tmp_path) == TWO.ids


def test_a_full_disk_takes_the_reserved_space(tmp_path: Path) -> None:
    with small_disk(tmp_path, 40_000_000) as is_small:
        if not is_small:
            pytest.skip("a small disk can only be mounted by root")
        living, folder = WriteAheadLog(tmp_path / "spool"), tmp_path / "spool"
        with pytest.raises(OSError, match="No space"), (tmp_path / "filling").open("wb", buffering=0) as filling:
            while True:
                assert filling.write(bytes(10_000)) == 10_000 or os.write(filling.fileno(), b"0")
        logged: list[str] = []
        while living.append(batch := answers(100, seed=len(logged))):
            logged += batch.ids
            assert len(logged) < 40_000
        assert len(logged) >= 20_000
        assert len(living.seal()) >= 10 and recovered(folder) == logged
        for path in segments(folder, SEALED):
            path.unlink()
        (tmp_path / "filling").unlink()
        living.refill()
        assert living.append(ONE) and living._reserved_bytes == 10 << 21
        living.close()


def test_a_disk_that_refuses_a_write_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    blocked = WriteAheadLog(tmp_path / "file")  # no folder can be made there
    assert not blocked.append(ONE)
    blocked.seal()
    living = WriteAheadLog(tmp_path / "spool")
    assert living.append(ONE)
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda file, parts, start: write(file, parts[:1], start))  # as a full disk does
    assert not living.append(TWO)
    monkeypatch.undo()
    assert living.append(TWO)  # once there is room again
    living.seal()
    assert recovered(tmp_path / "spool") == ONE.ids + TWO.ids


def test_nothing_stays_behind_where_the_disk_accepted_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda file, parts, start: 0)
    living = WriteAheadLog(tmp_path)
    assert not living.append(ONE) and living.seal() == []
    living.seal()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_recover_the_same_segment(tmp_path: Path) -> None:
    ids = die(tmp_path, "append(answers(1))")
    first = write_ahead_log.read(segments(tmp_path, SEALED, ACTIVE))
    path, contents = next(first)
    assert [batch.ids for batch in contents.batches] == [ids] and recovered(tmp_path) == []
    path.unlink()
    assert list(first) == [] and recovered(tmp_path) == []


def test_a_folder_is_no_segment(tmp_path: Path) -> None:
    (tmp_path / "0.sealed").mkdir()
    living = WriteAheadLog(tmp_path)
    assert living.append(ONE)
    living.seal()
    assert recovered(tmp_path) == ONE.ids
