"""The journal: records that are safe from the death of the process that wrote them, at the cost of one write each.

A record is handed to the operating system before its answer goes out, so that a killed process loses nothing. It is not forced
onto the disk: what a machine without power loses is what its operating system had not written.
"""

import fcntl
import os
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

LIVING, LEFT = (
    ".journal",
    ".left",
)  # suffixes: of one that is written to, and of one that its writer has left to whoever can
_LENGTH = struct.Struct("<I")


@dataclass
class _File:
    """One file, open and locked as long as its writer lives."""

    descriptor: int
    path: Path
    is_empty: bool = True
    is_whole: bool = True  # False once the disk refused a record: what followed could not be read

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


class WriteAheadLog:
    """The files of one process; each is removed once all that is in it is safe elsewhere.

    Nothing raises: what the disk does not take is missing from the journal, and still in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: _File | None = None
        self._full: deque[tuple[int, _File]] = deque()  # with how many answers, counted from the start, must be safe

    def append(self, record: bytes) -> None:
        """One write."""
        file = self._file
        if file is None or not file.is_whole:
            return
        frame = _LENGTH.pack(len(record)) + record
        file.is_empty = file.is_whole = False
        with suppress(OSError):
            file.is_whole = os.write(file.descriptor, frame) == len(frame)

    def turn(self, taken: int) -> None:
        """Begin a new file after so many answers, unless nothing was written to the current one."""
        if self._file is None or not (self._file.is_empty and self._file.is_whole):
            self._end(taken)
            try:
                self._file = self._begin()
            except OSError:
                self._file = _File(-1, self._folder / "none", is_whole=False)

    def forget(self, safe: int) -> None:
        """Remove the files whose answers are among the first so many."""
        while self._full and self._full[0][0] <= safe:
            self._full.popleft()[1].remove()

    def leave(self) -> int:
        """Let go of the files that hold all they should, for whoever can put their records elsewhere; so many answers are in them.

        Unlike the others they may have to last, so they are forced onto the disk.
        """
        safe = 0
        while self._full and self._full[0][1].is_whole:
            taken, file = self._full[0]
            try:
                os.fsync(file.descriptor)
                file.path.rename(file.path.with_suffix(LEFT))
            except OSError:
                file.is_whole = False
                break
            file.release()
            self._full.popleft()
            safe = taken
        return safe

    def drop_torn(self) -> bool:
        """Remove the files from the first one on that lacks a record, so that they can be written again; whether there was one."""
        was_torn = bool(self._full)
        while self._full:
            self._full.popleft()[1].remove()
        return was_torn

    def close(self, taken: int, safe: int) -> None:
        """Remove what may go; what may not is left for another process."""
        self._end(taken)
        self.forget(safe)
        while self._full:
            self._full.popleft()[1].release()

    def _begin(self) -> _File:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}-{uuid4().hex}{LIVING}"
        hidden = path.with_suffix(".tmp")
        descriptor = os.open(hidden, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        hidden.rename(path)  # only now: without its lock it would be taken for that of a dead process
        return _File(descriptor, path)

    def _end(self, taken: int) -> None:
        if self._file is not None:
            self._full.append((taken, self._file))
            self._file = None


def left_behind(folder: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """Journals that were left or whose processes died, with their whole records; whoever made them safe removes the file."""
    for path in sorted((*folder.glob(f"*{LEFT}"), *folder.glob(f"*{LIVING}"))):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, list(_records(file.read()))


def count_left(folder: Path) -> int:
    """Files that wait for somebody to put their records elsewhere, without those of processes that died."""
    return sum(1 for _ in folder.glob(f"*{LEFT}"))


def _records(content: bytes) -> Iterator[bytes]:
    """Up to the first that was cut short."""
    begin = 0
    while begin + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, begin)
        begin += _LENGTH.size
        if begin + length > len(content):
            return
        yield content[begin : begin + length]
        begin += length
