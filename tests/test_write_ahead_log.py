"""The write-ahead log: whole records of a killed process are recovered by the next one, and no segment stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from logged import answers

from services import write_ahead_log
from services.write_ahead_log import ACTIVE, SEALED, WriteAheadLog, segments

ROOT = Path(__file__).parent.parent
ONE, TWO = answers(1), answers(2, seed=1)


def recovered(folder: Path) -> list[str]:
    """The ids in the segments that no process writes."""
    found = write_ahead_log.read(segments(folder, SEALED, ACTIVE))
    return [id for _, content in found for batch in write_ahead_log.batches(content) for id in batch.ids]


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
    (path,) = living.seal()
    (batch,) = write_ahead_log.batches(path.read_bytes())
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
    assert living.seal() == segments(tmp_path, SEALED) and living.seal() == []
    long = answers(1 + write_ahead_log.SEGMENT_BYTES // 784)
    living.append(long)
    assert len(segments(tmp_path, SEALED)) == 2
    living.append(TWO)
    assert len(living.seal()) == 2 and recovered(tmp_path) == ONE.ids + long.ids + TWO.ids
    living.seal()


def test_a_record_cut_short_ends_the_segment(tmp_path: Path) -> None:
    ids = die(tmp_path, "append(answers(1)); append(answers(2))")
    (path,) = tmp_path.glob("*.wal")
    size = path.stat().st_size
    for cut in (1, 1000, 1600):
        os.truncate(path, size - cut)
        assert recovered(tmp_path) == ids[:1]
    os.truncate(path, 3)
    assert recovered(tmp_path) == []


def test_a_disk_that_refuses_a_write_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    blocked = WriteAheadLog(tmp_path / "file")  # no folder can be made there
    assert not blocked.append(ONE)
    blocked.seal()
    living = WriteAheadLog(tmp_path / "spool")
    assert living.append(ONE)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, frame: write(file, frame[:5]))  # as a full disk does
    assert not living.append(TWO)
    monkeypatch.undo()
    assert living.append(TWO)  # once there is room again
    living.seal()
    assert recovered(tmp_path / "spool") == ONE.ids + TWO.ids


def test_nothing_stays_behind_where_the_disk_accepted_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda file, frame: 0)
    living = WriteAheadLog(tmp_path)
    assert not living.append(ONE) and living.seal() == []
    living.seal()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_recover_the_same_segment(tmp_path: Path) -> None:
    ids = die(tmp_path, "append(answers(1))")
    first = write_ahead_log.read(segments(tmp_path, SEALED, ACTIVE))
    path, content = next(first)
    assert [batch.ids for batch in write_ahead_log.batches(content)] == [ids] and recovered(tmp_path) == []
    path.unlink()
    assert list(first) == [] and recovered(tmp_path) == []
