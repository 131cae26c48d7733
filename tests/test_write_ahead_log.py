"""The journal: what was written before a process died is read by the next, what is cut short is not, and nothing stays behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services import write_ahead_log
from services.write_ahead_log import WriteAheadLog

ROOT = Path(__file__).parent.parent


def records(folder: Path) -> list[bytes]:
    return [record for _, found in write_ahead_log.left_behind(folder) for record in found]


def die(folder: Path, program: str) -> None:
    """Run the program with a journal `j` in the folder, up to its sudden end."""
    start = f"import os; from pathlib import Path; from services.write_ahead_log import WriteAheadLog; j = WriteAheadLog(Path({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", f"{start}\n{program}\nos.kill(os.getpid(), 9)"], cwd=ROOT)
    assert done.returncode == -9


def test_what_a_killed_process_wrote_is_left_behind_in_order(tmp_path: Path) -> None:
    die(tmp_path, "j.turn(0); j.append(b'one'); j.append(b''); j.append(b'x' * 100_000)")
    assert records(tmp_path) == [b"one", b"", b"x" * 100_000]


def test_the_journal_of_a_living_process_is_nobody_elses(tmp_path: Path) -> None:
    living = WriteAheadLog(tmp_path)
    living.turn(0)
    living.append(b"mine")
    assert records(tmp_path) == [] and len(list(tmp_path.glob("*.journal"))) == 1
    living.close(taken=1, safe=0)
    assert records(tmp_path) == [b"mine"]


def test_a_file_goes_once_all_in_it_is_safe_and_not_before(tmp_path: Path) -> None:
    living = WriteAheadLog(tmp_path)
    living.turn(0)
    living.append(b"1")
    living.turn(1)
    living.turn(1)  # nothing was written to the new one: it stays
    living.append(b"2")
    living.append(b"3")
    living.turn(3)
    assert len(list(tmp_path.iterdir())) == 3
    living.forget(0)
    assert len(list(tmp_path.iterdir())) == 3
    living.forget(2)
    assert len(list(tmp_path.iterdir())) == 2
    living.forget(3)
    assert len(list(tmp_path.iterdir())) == 1
    living.close(taken=3, safe=3)
    assert list(tmp_path.iterdir()) == []


def test_a_record_cut_short_ends_the_file(tmp_path: Path) -> None:
    die(tmp_path, "j.turn(0); j.append(b'whole'); j.append(b'torn record')")
    (path,) = tmp_path.glob("*.journal")
    for size in range(path.stat().st_size - 1, 4 + len(b"whole") - 1, -1):
        os.truncate(path, size)
        assert records(tmp_path) == [b"whole"]
    os.truncate(path, 3)
    assert records(tmp_path) == []


def test_a_disk_that_refuses_costs_the_journal_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    blocked = WriteAheadLog(tmp_path / "file")  # no folder can be made there
    blocked.turn(0)
    blocked.append(b"1")
    blocked.close(1, 1)
    living = WriteAheadLog(tmp_path / "spool")
    living.turn(0)
    living.append(b"1")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, frame: write(file, frame[:5]))  # as a full disk does
    living.append(b"22222")
    monkeypatch.undo()
    living.append(b"3")  # which nobody could read after the torn one
    living.turn(3)
    living.append(b"4")
    living.close(taken=4, safe=0)
    assert sorted(records(tmp_path / "spool")) == [b"1", b"4"]


def test_two_processes_do_not_take_the_same_journal(tmp_path: Path) -> None:
    die(tmp_path, "j.turn(0); j.append(b'one')")
    first = write_ahead_log.left_behind(tmp_path)
    path, found = next(first)
    assert found == [b"one"] and records(tmp_path) == []
    path.unlink()
    assert list(first) == [] and records(tmp_path) == []
