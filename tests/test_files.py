"""Atomic writes, what is left of killed ones, and the permissions of state."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from digits import files

# A process that is killed while it writes; it prints the path of what it leaves.
KILLED = """
import os, signal, sys
from pathlib import Path
from digits import files
with files.replacing(Path(sys.argv[1])) as part:
    part.mkdir() if sys.argv[2] == "folder" else part.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(target: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), kind], cwd=Path(__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL


def test_what_killed_processes_left_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    leave(tmp_path / "file", "file")
    leave(tmp_path / "folder", "folder")
    foreign = tmp_path / ".somebody-elses.tmp"
    foreign.touch()
    assert len(list(tmp_path.iterdir())) == 3
    with files.replacing(tmp_path / "mine") as part:
        part.touch()
        files.remove_abandoned(tmp_path.rglob(".*.tmp"))
        assert sorted(tmp_path.iterdir()) == sorted([foreign, part])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".somebody-elses.tmp", "mine"]


def test_what_another_user_left_in_a_shared_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path / "file", "file")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
        files.remove_abandoned(tmp_path.iterdir())
    (left,) = tmp_path.iterdir()
    # The other of two that clean up at once finds it gone.
    files.remove_abandoned([left, left])
    assert not left.exists()


def test_a_private_folder_is_for_its_user_only_and_links_are_not_followed(tmp_path: Path) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.touch(0o644)
    outside.chmod(0o644)
    (home / "logs").mkdir(parents=True)
    (home / "logs").chmod(0o777)
    (home / "digits.db").touch()
    (home / "digits.db").chmod(0o664)
    (home / "link").symlink_to(outside)
    files.make_private(home)
    modes = {name: os.stat(home / name).st_mode & 0o777 for name in (".", "logs", "digits.db", "link")}
    assert modes == {".": 0o700, "logs": 0o700, "digits.db": 0o600, "link": 0o644}
