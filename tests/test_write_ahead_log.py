"""The write-ahead log: whole records of a killed process are recovered by the next one, and no segment stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services import write_ahead_log
from services.write_ahead_log import WriteAheadLog

ROOT = Path(__file__).parent.parent


def records(folder: Path) -> list[bytes]:
    return [record for _, found in write_ahead_log.recoverable(folder) for record in found]


def die(folder: Path, program: str) -> None:
    """Run the program with a write-ahead log `wal` in the folder until it kills itself."""
    start = f"import os; from pathlib import Path; from services.write_ahead_log import WriteAheadLog; wal = WriteAheadLog(Path({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", f"{start}\n{program}\nos.kill(os.getpid(), 9)"], cwd=ROOT)
    assert done.returncode == -9


def test_the_records_of_a_killed_process_are_recovered_in_order(tmp_path: Path) -> None:
    die(tmp_path, "wal.rotate(0); wal.append(b'one'); wal.append(b''); wal.append(b'x' * 100_000)")
    assert records(tmp_path) == [b"one", b"", b"x" * 100_000]


def test_the_segment_of_a_running_process_is_not_recovered_by_others(tmp_path: Path) -> None:
    living = WriteAheadLog(tmp_path)
    living.rotate(0)
    living.append(b"mine")
    assert records(tmp_path) == [] and len(list(tmp_path.glob("*.wal"))) == 1
    living.close(appended=1, durable=0)
    assert records(tmp_path) == [b"mine"]


def test_a_segment_is_removed_once_all_its_records_are_stored(tmp_path: Path) -> None:
    living = WriteAheadLog(tmp_path)
    living.rotate(0)
    living.append(b"1")
    living.rotate(1)
    living.rotate(1)  # nothing was written to the new one: it stays
    living.append(b"2")
    living.append(b"3")
    living.rotate(3)
    assert len(list(tmp_path.iterdir())) == 3
    living.discard(0)
    assert len(list(tmp_path.iterdir())) == 3
    living.discard(2)
    assert len(list(tmp_path.iterdir())) == 2
    living.discard(3)
    assert len(list(tmp_path.iterdir())) == 1
    living.close(appended=3, durable=3)
    assert list(tmp_path.iterdir()) == []


def test_a_record_cut_short_ends_the_segment(tmp_path: Path) -> None:
    die(tmp_path, "wal.rotate(0); wal.append(b'whole'); wal.append(b'torn record')")
    (path,) = tmp_path.glob("*.wal")
    for size in range(path.stat().st_size - 1, 4 + len(b"whole") - 1, -1):
        os.truncate(path, size)
        assert records(tmp_path) == [b"whole"]
    os.truncate(path, 3)
    assert records(tmp_path) == []


def test_a_disk_that_refuses_a_write_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    blocked = WriteAheadLog(tmp_path / "file")  # no folder can be made there
    blocked.rotate(0)
    blocked.append(b"1")
    blocked.close(1, 1)
    living = WriteAheadLog(tmp_path / "spool")
    living.rotate(0)
    living.append(b"1")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, frame: write(file, frame[:5]))  # as a full disk does
    living.append(b"22222")
    monkeypatch.undo()
    living.append(b"3")  # which nobody could read after the torn one
    living.rotate(3)
    living.append(b"4")
    living.close(appended=4, durable=0)
    assert sorted(records(tmp_path / "spool")) == [b"1", b"4"]


def test_two_processes_do_not_recover_the_same_segment(tmp_path: Path) -> None:
    die(tmp_path, "wal.rotate(0); wal.append(b'one')")
    first = write_ahead_log.recoverable(tmp_path)
    path, found = next(first)
    assert found == [b"one"] and records(tmp_path) == []
    path.unlink()
    assert list(first) == [] and records(tmp_path) == []
