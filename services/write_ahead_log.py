"""The write-ahead log: one write per batch of predictions makes it survive the death of its process.

A batch is handed to the operating system before it is answered. It is not forced onto the disk: a power failure loses what the
operating system has not written yet. A segment is a file of records; each has a length and a checksum, so that damage costs the
records that it hits and no other. Space for a segment is allocated when it is created, and for ten more in a reserve: while others
have filled the disk, predictions are still logged.
"""

import fcntl
import logging
import os
import re
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson

from digits.images import PIXELS, SIZE
from digits.storage.predictions import Place, PredictionBatch
from services.access import MAX_CLIENT_LENGTH

log = logging.getLogger("digits.write_ahead_log")

# Suffixes of a segment that its process writes to, of one that it has handed over, and of one that holds more than whole records.
ACTIVE, SEALED, DAMAGED = ".wal", ".sealed", ".damaged"
SEGMENT_BYTES = 1 << 21
MAX_SEGMENT_BYTES = 1 << 27  # of a single record: the images of one bulk request
RESERVED_SEGMENTS = 10
FORMAT = 2
WITHOUT_SCORES = 1  # the format before, which a service that was updated may find
# A record begins with the sync marker of its segment, which the file name repeats: random, so that no image can contain a forged record.
# Then come the format and the length and CRC-32 of the content: a line of JSON, the images, the probabilities, the digit scores.
_HEADER = struct.Struct("<8sBII")
SYNC_MARKER_BYTES = 8
MAX_NAME_LENGTH = 32  # of a version or a route, as in the database
MAX_PROBABILITY = 1.01  # rounded up
_ID = re.compile(r"[0-9a-f]{32}")

Buffer = bytes | memoryview


class Contents(NamedTuple):
    """What a segment holds."""

    batches: list[PredictionBatch]  # of the whole records
    damaged_bytes: int  # that belong to no whole record


Segment = tuple[Path, Contents]


class WriteAheadLog:
    """The segments of one process. The active one is locked, so that an unlocked one belongs to a dead process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor, self._path, self._size, self._sync_marker = -1, folder, 0, b""
        self._reserve: IO[bytes] | None = None
        self._batches: list[PredictionBatch] = []  # in the active segment
        self._sealed: list[Segment] = []
        self.refill()

    def append(self, batch: PredictionBatch) -> bool:
        """Write predictions to the active segment; False if the disk does not accept them, or no segment holds so many."""
        content = _encode(batch)
        length = _HEADER.size + sum(map(len, content))
        if length > MAX_SEGMENT_BYTES:
            return False
        if self._descriptor >= 0 and self._size and self._size + length > SEGMENT_BYTES:
            self._seal()
        try:
            if self._descriptor < 0:
                self._create()
            if os.pwritev(self._descriptor, [_header(self._sync_marker, content), *content], self._size) < length:
                # The next record is written over this one; the rest of it would be taken for damage.
                os.ftruncate(self._descriptor, self._size)
                os.posix_fallocate(self._descriptor, 0, SEGMENT_BYTES)
                return False
        except OSError:
            return False
        self._size += length
        self._batches.append(batch)
        return True

    def seal(self) -> list[Segment]:
        """Hand over the active segment. Returns what was handed over since the last call, with its content, which need not be read again."""
        if self._descriptor >= 0:
            self._seal()
        sealed, self._sealed = self._sealed, []
        return sealed

    def forget_sealed(self) -> None:
        """Free the predictions of what was handed over; the files stay, and are read later."""
        self._sealed = []

    def refill(self) -> None:
        """Reserve space again that was needed while the disk was full, as far as there is some."""
        with suppress(OSError):
            if self._reserve is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # Without a name, so that the space is free again when this process dies.
                self._reserve = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # open as long as the log
            while self._reserved_bytes < RESERVED_SEGMENTS * SEGMENT_BYTES:
                os.posix_fallocate(self._reserve.fileno(), self._reserved_bytes, SEGMENT_BYTES)

    def close(self) -> None:
        """Give the reserved space back."""
        if self._reserve:
            self._reserve.close()
            self._reserve = None

    @property
    def _reserved_bytes(self) -> int:
        return os.fstat(self._reserve.fileno()).st_size if self._reserve else 0

    def _create(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sync_marker, self._size = os.urandom(SYNC_MARKER_BYTES), 0
        path = self._folder / f"{time.time_ns()}-{os.getpid()}-{self._sync_marker.hex()}{ACTIVE}"
        unlocked = path.with_suffix(".tmp")
        descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._allocate(descriptor)
            unlocked.rename(path)
        except OSError:
            os.close(descriptor)
            unlocked.unlink()
            raise
        self._descriptor, self._path = descriptor, path

    def _allocate(self, descriptor: int) -> None:
        """Give a new segment its space, from the reserve where the disk has none; raises OSError where that is used up."""
        try:
            os.posix_fallocate(descriptor, 0, SEGMENT_BYTES)
        except OSError:
            if self._reserve is None or self._reserved_bytes < SEGMENT_BYTES:
                raise
            self._reserve.truncate(self._reserved_bytes - SEGMENT_BYTES)
            os.posix_fallocate(descriptor, 0, SEGMENT_BYTES)

    def _seal(self) -> None:
        # A segment that cannot be renamed is recovered as that of a dead process.
        with suppress(OSError):
            if self._size:
                # Truncating a nearly full segment takes as long as writing it, and saves little.
                if self._size < SEGMENT_BYTES // 2:
                    os.ftruncate(self._descriptor, self._size)
                sealed = self._path.rename(self._path.with_suffix(SEALED))
                self._sealed.append((sealed, Contents(self._batches, 0)))
            else:
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor, self._batches = -1, []


def segments(folder: Path, *suffixes: str) -> list[Path]:
    """The segments with these suffixes, the oldest first."""
    return sorted(path for suffix in suffixes for path in folder.glob(f"*{suffix}") if path.is_file())


def read(paths: Iterable[Path], known: Mapping[Path, Contents] | None = None) -> Iterator[Segment]:
    """The content of the segments that no other process writes or stores; the caller removes a segment that it has stored.

    A segment that cannot be read is logged and left, and read once it can be. A file too large for a segment is damage, and not read.
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = os.fstat(file.fileno()).st_size
                if size > MAX_SEGMENT_BYTES:
                    _report(path, f"holds {size:,} bytes, more than a segment can; it is set aside unread")
                    yield path, Contents([], size)
                else:
                    yield path, (known or {}).get(path) or parse(path, file.read())
        except (FileNotFoundError, BlockingIOError):
            continue
        except OSError as error:
            _report(path, f"cannot be read ({error.strerror}); fix its permissions or move it away")


# once for each file and problem, not at every pass
@lru_cache(1000)
def _report(path: Path, problem: str) -> None:
    log.error("%s %s", path, problem)


def parse(path: Path, content: bytes) -> Contents:
    """The predictions in the whole records of a segment; after damage, reading goes on at the next sync marker."""
    sync_marker = _sync_marker(path)
    batches, damaged_bytes, position = [], 0, 0
    while position < len(content):
        # No record contains the sync marker again. So each byte is searched and checksummed once, whatever lengths the headers claim.
        behind = position + SYNC_MARKER_BYTES if content.startswith(sync_marker, position) else position
        following = content.find(sync_marker, behind) if sync_marker else -1
        limit = len(content) if following < 0 else following
        try:
            batch, end = _decode(content, position, limit, sync_marker)
            batches.append(batch)
        except (ValueError, TypeError, struct.error):
            end = limit
            # The space behind the last record of a killed process is all zeros.
            damaged_bytes += end - position if content[position:end].strip(b"\0") else 0
        position = end
    return Contents(batches, damaged_bytes)


def _sync_marker(path: Path) -> bytes:
    """The sync marker in the name of a segment, empty where it has none."""
    with suppress(ValueError):
        sync_marker = bytes.fromhex(path.stem.rpartition("-")[2])
        return sync_marker if len(sync_marker) == SYNC_MARKER_BYTES else b""
    return b""


def _encode(batch: PredictionBatch) -> list[Buffer]:
    """The content of a record in parts; the arrays are not copied."""
    places = list(map(list, batch.places))
    head = orjson.dumps([batch.ids, batch.at, batch.version, batch.route, batch.clients, places])
    scores = batch.digit_scores if batch.digit_scores is not None else np.full(len(batch.images), np.nan, np.float32)
    return [head, b"\n", *(array.data.cast("B") for array in (batch.images, batch.probabilities, scores))]


def _header(sync_marker: bytes, content: list[Buffer]) -> bytes:
    return _HEADER.pack(sync_marker, FORMAT, sum(map(len, content)), _checksum(FORMAT, *content))


def _checksum(format: int, *content: Buffer) -> int:
    checksum = zlib.crc32(struct.pack("<BI", format, sum(map(len, content))))
    for part in content:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _decode(content: bytes, position: int, limit: int, sync_marker: bytes) -> tuple[PredictionBatch, int]:
    """The predictions of the record at a position, and its end, at most `limit`.

    Raises ValueError, TypeError or struct.error where no record is whole, or it holds something else.
    """
    found, format, length, checksum = _HEADER.unpack_from(content, position)
    start = position + _HEADER.size
    end = start + length
    if found != sync_marker or format not in (FORMAT, WITHOUT_SCORES) or end > limit:
        raise ValueError("no record begins here")
    if _checksum(format, memoryview(content)[start:end]) != checksum:
        raise ValueError("the record is damaged")
    line = content.index(b"\n", start, end)
    ids, at, version, route, clients, *more = orjson.loads(content[start:line])
    at, (places,) = datetime.fromisoformat(at), more or [[]]
    _check(ids, at, version, route, clients, places)
    ends = list(accumulate([PIXELS, 40, 4] if format == FORMAT else [PIXELS, 40], initial=0))
    parts = [content[line + 1 + len(ids) * first : line + 1 + len(ids) * last] for first, last in pairwise(ends)]
    if line + 1 + len(ids) * ends[-1] != end:
        raise ValueError("the record holds arrays of another size")
    images = np.frombuffer(parts[0], np.uint8).reshape(len(ids), SIZE, SIZE)
    probabilities = np.frombuffer(parts[1], np.float32).reshape(len(ids), 10)
    scores = np.frombuffer(parts[2], np.float32) if format == FORMAT else None
    if not ((probabilities >= 0) & (probabilities <= MAX_PROBABILITY)).all():
        raise ValueError("the record holds other numbers than probabilities")
    found_places = [Place(*place) for place in places]
    return PredictionBatch(ids, at, version, images, probabilities, route, clients, scores, found_places), end


def _check(ids: Any, at: datetime, version: Any, route: Any, clients: Any, places: Any) -> None:
    """Raise ValueError or TypeError for what no service logs: a checksum is no signature."""
    if not (isinstance(ids, list) and all(map(_ID.fullmatch, ids)) and len(set(ids)) == len(ids)):
        raise ValueError("expected different ids of 32 hex digits")
    # Arithmetic with a time at the very end of the range would overflow.
    if at.tzinfo is None or not 1970 <= at.year < 9999:
        raise ValueError("expected a time with its zone")
    if not (_is_text(version, MAX_NAME_LENGTH) and _is_text(route, MAX_NAME_LENGTH)):
        raise ValueError("expected the names of a version and a route")
    if not (isinstance(clients, list) and len(clients) in (0, len(ids))):
        raise ValueError("expected a client for each id, or none")
    if not all(_is_text(client, MAX_CLIENT_LENGTH) for client in clients):
        raise ValueError("expected the names of clients")
    if not (isinstance(places, list) and len(places) in (0, len(ids)) and all(map(_is_place, places))):
        raise ValueError("expected a place for each id, or none")


def _is_text(value: Any, length: int) -> bool:
    return isinstance(value, str) and len(value) <= length and value.isprintable()


def _is_place(value: Any) -> bool:
    """Whether it may be a `Place`: as many whole numbers, none below 0."""
    whole = isinstance(value, list) and len(value) == len(Place._fields) and all(type(part) is int for part in value)
    return whole and all(0 <= part < 1 << 31 for part in value)
