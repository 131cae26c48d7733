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

_LENGTH = struct.Struct("<I")


@dataclass
class _File:
    """One file, open and locked as long as its writer lives."""

    descriptor: int
    path: Path
    is_empty: bool = True
    is_whole: bool = True  # False once the disk refused a record: what followed could not be read


class Journal:
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
        if self._file is None or not self._file.is_empty:
            self._end(taken)
            with suppress(OSError):
                self._file = self._begin()

    def forget(self, safe: int) -> None:
        """Remove the files whose answers are among the first so many."""
        while self._full and self._full[0][0] <= safe:
            file = self._full.popleft()[1]
            file.path.unlink(missing_ok=True)
            os.close(file.descriptor)

    def close(self, taken: int, safe: int) -> None:
        """Remove what may go; what may not is left for another process."""
        self._end(taken)
        self.forget(safe)
        while self._full:
            os.close(self._full.popleft()[1].descriptor)

    def _begin(self) -> _File:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}-{uuid4().hex}.journal"
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
    """The journals of processes that died, with their whole records; whoever made them safe removes the file."""
    for path in sorted(folder.glob("*.journal")):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, list(_records(file.read()))


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
