"""The write-ahead log: one write per record makes it survive the death of its process.

A record is handed to the operating system before its prediction is answered. It is not forced onto the disk: a power failure loses
what the operating system has not written yet.
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

# Suffixes of a segment that its process writes to, and of one that it has handed over for recovery.
ACTIVE, SEALED = ".wal", ".sealed"
_LENGTH = struct.Struct("<I")


@dataclass
class _Segment:
    """One file, open and locked as long as its process lives."""

    descriptor: int
    path: Path
    is_empty: bool = True
    # False once the disk refused a record: what follows it could not be read
    is_complete: bool = True

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


class WriteAheadLog:
    """The segments of one process; a segment is removed once all its records are in the database.

    No method raises: a record that the disk does not accept makes its segment incomplete, and is still in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment: _Segment | None = None
        # full segments, each with the number of predictions, counted from the start, up to which it reaches
        self._full: deque[tuple[int, _Segment]] = deque()

    def append(self, record: bytes) -> None:
        """Write one record to the current segment."""
        segment = self._segment
        if segment is None or not segment.is_complete:
            return
        frame = _LENGTH.pack(len(record)) + record
        segment.is_empty = segment.is_complete = False
        with suppress(OSError):
            segment.is_complete = os.write(segment.descriptor, frame) == len(frame)

    def rotate(self, count: int) -> None:
        """Begin a new segment after `count` predictions, unless the current one is still empty."""
        if self._segment is None or not (self._segment.is_empty and self._segment.is_complete):
            self._finish(count)
            try:
                self._segment = self._create()
            except OSError:
                self._segment = _Segment(-1, self._folder / "none", is_complete=False)

    def discard(self, count: int) -> None:
        """Remove the segments whose records are all among the first `count` predictions."""
        while self._full and self._full[0][0] <= count:
            self._full.popleft()[1].remove()

    def seal(self) -> int:
        """Hand the complete segments over for recovery and return the number of predictions up to which they reach, or 0.

        Sealed segments may have to last, so they are forced onto the disk.
        """
        sealed = 0
        while self._full and self._full[0][1].is_complete:
            count, segment = self._full[0]
            try:
                os.fsync(segment.descriptor)
                segment.path.rename(segment.path.with_suffix(SEALED))
            except OSError:
                segment.is_complete = False
                break
            segment.release()
            self._full.popleft()
            sealed = count
        return sealed

    def drop_incomplete(self) -> bool:
        """Remove the full segments from the first incomplete one on, to be written again; whether there were any."""
        had_any = bool(self._full)
        while self._full:
            self._full.popleft()[1].remove()
        return had_any

    def close(self, appended: int, durable: int) -> None:
        """Remove the segments that are not needed any more and leave the others for another process."""
        self._finish(appended)
        self.discard(durable)
        while self._full:
            self._full.popleft()[1].release()

    def _create(self) -> _Segment:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}-{uuid4().hex}{ACTIVE}"
        unlocked = path.with_suffix(".tmp")
        descriptor = os.open(unlocked, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # renamed only now: an active segment without a lock belongs to a dead process
        unlocked.rename(path)
        return _Segment(descriptor, path)

    def _finish(self, count: int) -> None:
        if self._segment is not None:
            self._full.append((count, self._segment))
            self._segment = None


def recoverable(folder: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """Sealed segments and those of dead processes, with their whole records; the caller removes a file it has stored."""
    for path in sorted((*folder.glob(f"*{SEALED}"), *folder.glob(f"*{ACTIVE}"))):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, list(_records(file.read()))


def count_sealed(folder: Path) -> int:
    """Number of sealed segments."""
    return sum(1 for _ in folder.glob(f"*{SEALED}"))


def _records(content: bytes) -> Iterator[bytes]:
    """The records up to the first that was cut short."""
    start = 0
    while start + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        if start + length > len(content):
            return
        yield content[start : start + length]
        start += length
