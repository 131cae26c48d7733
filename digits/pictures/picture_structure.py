"""Bounds the work that a picture file of few bytes can cause: its parts are counted before Pillow decodes it.

Pillow reads the chunks of a PNG and the segments of a JPEG in Python and inflates every colour profile, and each scan of a progressive JPEG visits all
pixels: without these bounds, 300 kB took 33 s and 16 MB more than a minute.
"""

import math
import re
import struct
from collections.abc import Iterator
from itertools import islice

# libpng writes chunks of 8 kB, so a PNG of 16 MB has 2,000. Others are metadata, of which each may inflate to 1 MB.
MAX_CHUNKS, MAX_METADATA_CHUNKS = 20_000, 100
# A JPEG of 16 MB has 250 segments of the largest size, and libjpeg's progressive colour pictures have 10 scans.
MAX_SEGMENTS, MAX_SCANS = 1_000, 30
# One is usual. Pillow appends each to those before, and reads all their tags.
MAX_EXIF_SEGMENTS = 2
MAX_PADDING_BYTES = 10_000
# Photoshop writes some 30 of these blocks of information; Pillow reads each in Python.
MAX_PHOTOSHOP_BLOCKS = 1_000
# A search holds Python's lock, for some milliseconds in so many bytes of 0xFF.
SEARCH_BYTES = 100_000
SMALL_BYTES, SMALL_PIXELS = 100_000, 2_000_000
TINY_SIDE, TINY_CHUNKS = 512, 100
# A tenth of a small PNG; a colour profile may inflate to a thousand times as much, at 3 ms for each megabyte.
SMALL_METADATA_BYTES, TINY_METADATA_BYTES = 10_000, 1_000

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# A marker other than a restart marker; in the data of a scan, 0xFF is followed by zero.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_NONE, _TEM, _SOI, _EOI, _SOS, _APP13 = 0x00, 0x01, 0xD8, 0xD9, 0xDA, 0xED
# Frame headers hold height and width; these three codes between them are other segments.
_SOF = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def refusal(body: bytes) -> str | None:
    """Why a PNG, JPEG or BMP file would take too long to decode; None for one that does not, and for any other file."""
    if body.startswith(_PNG):
        return _refusal_of_png(body)
    if body.startswith(_JPEG):
        return _refusal_of_jpeg(body)
    # Pillow's decoder of run lengths is written in Python: 16 MB take five seconds.
    if body.startswith(b"BM") and body[14:15] >= b"\x28" and body[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        return "the BMP file is run-length encoded; save it without compression, or as PNG"
    return None


def is_small(body: bytes) -> bool:
    """Whether a PNG or JPEG file of at most 100 kB says that it has at most 2 million pixels, which take some 30 ms to decode."""
    if len(body) > SMALL_BYTES:
        return False
    if size := _png_size(body):
        return math.prod(size) <= SMALL_PIXELS and _metadata_bytes(body) <= SMALL_METADATA_BYTES
    return body.startswith(_JPEG) and _is_small_jpeg(body)


def is_tiny(body: bytes) -> bool:
    """Whether a PNG file of at most 100 kB says that no side has more than 512 pixels, which take at most 9 ms to decode.

    It has at most 100 chunks, and 1,000 bytes in those other than its pixels.
    """
    size = _png_size(body)
    if size is None or len(body) > SMALL_BYTES or max(size) > TINY_SIDE:
        return False
    has_few_chunks = sum(1 for _ in islice(_chunks(body), TINY_CHUNKS + 1)) <= TINY_CHUNKS
    return has_few_chunks and _metadata_bytes(body) <= TINY_METADATA_BYTES


def _png_size(body: bytes) -> tuple[int, int] | None:
    """Width and height in the first header of a PNG, None for another file."""
    has_header = body.startswith(_PNG) and body[12:16] == b"IHDR" and len(body) >= 24
    return struct.unpack_from(">II", body, 16) if has_header else None


def _is_small_jpeg(body: bytes) -> bool:
    """Whether all frame headers before the first scan, which are all that a decoder takes, have few pixels."""
    for code, place, _ in islice(_segments(body), MAX_SEGMENTS):
        if code == _SOS:
            return True
        if code in _SOF and place + 7 <= len(body):
            height, width = struct.unpack_from(">HH", body, place + 3)
            if width * height > SMALL_PIXELS:
                return False
    return False


def _metadata_bytes(body: bytes) -> int:
    """The length of all chunks of a PNG other than those of its pixels."""
    return sum(length for kind, length in _chunks(body) if kind != b"IDAT")


def _refusal_of_png(body: bytes) -> str | None:
    metadata = 0
    for chunks, (kind, _) in enumerate(_chunks(body), 1):
        if (kind == b"IHDR") != (chunks == 1):
            return "the PNG file does not begin with its only IHDR chunk; save the picture again and send that"
        metadata += kind != b"IDAT"
        if found := _first_above((chunks, MAX_CHUNKS, "chunks"), (metadata, MAX_METADATA_CHUNKS, "metadata chunks")):
            return f"the PNG file has {found}; save the picture again and send that"
    return None


def _chunks(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk of a PNG up to its end."""
    place, kind = 8, b""
    while place + 8 <= len(body) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", body, place)
        yield kind, length
        place += 12 + length


def _refusal_of_jpeg(body: bytes) -> str | None:
    scans = padding = exif = blocks = 0
    for segments, (code, place, skipped) in enumerate(_segments(body), 1):
        # Pillow reads the head, libjpeg what follows the first scan.
        padding += 0 if scans else skipped
        scans += code == _SOS
        exif += body.startswith(b"Exif", place + 2)
        if code == _APP13:
            blocks += body.count(b"8BIM", place, place + int.from_bytes(body[place : place + 2]))
        if found := _first_above(
            (exif, MAX_EXIF_SEGMENTS, "EXIF segments"),
            (segments, MAX_SEGMENTS, "segments"),
            (scans, MAX_SCANS, "scans"),
            (padding, MAX_PADDING_BYTES, "bytes between its segments"),
            (blocks, MAX_PHOTOSHOP_BLOCKS, "Photoshop blocks"),
        ):
            return f"the JPEG file has {found}; save the picture again and send that"
    return None


def _segments(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each segment of the picture the code of its marker, where its content begins, and the bytes that were skipped before it.

    Bytes without a marker at the end of a file are the last segment, of code 0, and so is all that follows too many of them before the
    first scan.
    """
    place, has_scan = 2, False
    while place < len(body):
        end = _marker_end(body, place, len(body) if has_scan else place + MAX_PADDING_BYTES + 2)
        if end is None:
            yield _NONE, len(body), len(body) - place
            return
        code, skipped, place = body[end - 1], end - 2 - place, end
        # Before the first scan, Pillow reads on after an end; what follows the picture is a video, or another picture.
        if code == _EOI and has_scan:
            return
        yield code, place, skipped
        has_scan |= code == _SOS
        if code not in (_TEM, _SOI, _EOI):
            place += max(2, int.from_bytes(body[place : place + 2]))


def _marker_end(body: bytes, start: int, stop: int) -> int | None:
    """The end of the first marker between two places; None where there is none."""
    for place in range(start, stop, SEARCH_BYTES):
        # The slices share a byte, because a marker has two.
        if marker := _MARKER.search(body, place, min(place + SEARCH_BYTES + 1, stop)):
            return marker.end()
    return None


def _first_above(*counts: tuple[int, int, str]) -> str | None:
    """In words, the first of the counts that is above its limit; None where none is."""
    return next((f"more than {limit:,} {name}" for number, limit, name in counts if number > limit), None)
