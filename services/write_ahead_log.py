"""The write-ahead log: one write per batch of predictions makes it survive the death of its process.

A batch is handed to the operating system before it is answered. It is not forced onto the disk: a power failure loses what the
operating system has not written yet.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import orjson

from digits.images import PIXELS, SIZE
from digits.storage.predictions import PredictionBatch

# Suffixes of a segment that its process writes to, and of one that it has handed over.
ACTIVE, SEALED = ".wal", ".sealed"
SEGMENT_BYTES = 2_000_000
# A record is its length, a line of JSON, the images, the probabilities.
_LENGTH = struct.Struct("<I")


class WriteAheadLog:
    """The segments of one process. The active one is locked, so that an unlocked one belongs to a dead process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor, self._path, self._size = -1, folder, 0
        self._sealed: list[Path] = []

    def append(self, batch: PredictionBatch) -> bool:
        """Write predictions to the active segment; False if the disk does not accept them."""
        head = orjson.dumps([batch.ids, batch.at, batch.version, batch.route, batch.clients])
        length = _LENGTH.pack(len(head) + 1 + batch.images.nbytes + batch.probabilities.nbytes)
        frame = b"".join((length, head, b"\n", batch.images.data, batch.probabilities.data))
        try:
            if self._descriptor < 0:
                self._create()
            if os.write(self._descriptor, frame) < len(frame):
                # what follows a record that was cut short could not be read
                os.ftruncate(self._descriptor, self._size)
                return False
        except OSError:
            return False
        self._size += len(frame)
        if self._size > SEGMENT_BYTES:
            self._seal()
        return True

    def seal(self) -> list[Path]:
        """Hand over the active segment, and return what was handed over since the last call."""
        if self._descriptor >= 0:
            self._seal()
        sealed, self._sealed = self._sealed, []
        return sealed

    def _create(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.time_ns()}-{os.getpid()}{ACTIVE}"
        unlocked = path.with_suffix(".tmp")
        descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unlocked.rename(path)
        self._descriptor, self._path = descriptor, path

    def _seal(self) -> None:
        # a segment that cannot be renamed is recovered as that of a dead process
        with suppress(OSError):
            if self._size:
                self._sealed.append(self._path.rename(self._path.with_suffix(SEALED)))
            else:
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor, self._size = -1, 0


def segments(folder: Path, *suffixes: str) -> list[Path]:
    """The segments with these suffixes, the oldest first."""
    return sorted(path for suffix in suffixes for path in folder.glob(f"*{suffix}"))


def read(paths: Iterable[Path]) -> Iterator[tuple[Path, bytes]]:
    """The content of the segments that no other process writes or stores; the caller removes a segment that it has stored."""
    for path in paths:
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, file.read()


def batches(content: bytes) -> Iterator[PredictionBatch]:
    """The predictions of a segment up to the first record that was cut short; raises ValueError if it contains something else."""
    view, end = memoryview(content), 0
    while end + _LENGTH.size <= len(content):
        start = end + _LENGTH.size
        end = start + _LENGTH.unpack_from(content, end)[0]
        if end > len(content):
            return
        line = content.index(b"\n", start, end)
        ids, at, version, route, clients = orjson.loads(view[start:line])
        middle = line + 1 + len(ids) * PIXELS
        images = np.frombuffer(view[line + 1 : middle], np.uint8).reshape(-1, SIZE, SIZE)
        probabilities = np.frombuffer(view[middle:end], np.float32).reshape(len(ids), 10)
        yield PredictionBatch(ids, datetime.fromisoformat(at), version, images, probabilities, route, clients)
