"""Atomic writes: a file or folder appears under its name complete, or not at all; and the permissions of state."""

import os
import pwd
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname
from stat import S_IMODE
from uuid import uuid4


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A path beside `target` for a file or folder that the block creates; what is there at the end is removed."""
    part = target.with_name(f".{target.name}-{gethostname()}-{os.getpid()}-{uuid4().hex}.tmp")
    try:
        yield part
    finally:
        _remove(part)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove this user's files and folders among the paths that `unfinished` gave to processes of this machine that have been killed."""
    pattern = re.compile(rf".+-{re.escape(gethostname())}-(\d+)-[0-9a-f]{{32}}\.tmp")
    for path in list(paths):
        found = pattern.fullmatch(path.name)
        # Another process may remove the same ones.
        with suppress(FileNotFoundError):
            if found and not is_alive(int(found[1])) and path.lstat().st_uid == os.geteuid():
                _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def foreign_owner(path: Path, *, trusts_root: bool) -> str | None:
    """The other user that a path belongs to, or what it leads to if it is a link; None if it is ours, or missing."""
    with suppress(FileNotFoundError):
        for owner in (path.lstat().st_uid, path.stat().st_uid):
            if owner != os.geteuid() and (owner or not trusts_root):
                with suppress(KeyError):
                    return pwd.getpwuid(owner).pw_name
                return f"user {owner}"
    return None


def make_private(folder: Path) -> None:
    """Take the permissions of group and others from a folder and all that is in it and belongs to this user."""
    for path in [folder, *folder.rglob("*")]:
        # A temporary file may be gone by now.
        with suppress(FileNotFoundError):
            status = path.lstat()
            if status.st_uid == os.geteuid() and S_IMODE(status.st_mode) & 0o077 and not path.is_symlink():
                path.chmod(S_IMODE(status.st_mode) & 0o700)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` at which the block creates a file, or a folder of files, that then replaces `target`.

    What was created is flushed to disk before it is renamed. Where the block raises or creates nothing, `target` stays as it is.
    """
    with unfinished(target) as part:
        yield part
        if part.exists():
            for path in part.iterdir() if part.is_dir() else [part]:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if target.is_dir():
                shutil.rmtree(target)
            part.replace(target)


def write_atomically(target: Path, content: bytes) -> None:
    """Replace the content of a file in one step."""
    with replacing(target) as part:
        part.write_bytes(content)
