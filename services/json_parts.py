"""Reads the images of a large JSON body part by part.

orjson holds Python's lock while it parses, 80 ms for 3 MB, and no other request is answered meanwhile.
"""

import re
import time
from collections.abc import Iterator

import numpy as np
import orjson

from digits.images import Images, from_json

# A part ends with the first image that ends after this many bytes.
PART_BYTES = 50_000
# The longest that is accepted; one has 25 kB where its numbers have 17 digits and lines of their own.
MAX_IMAGE_BYTES = 100_000
# Between two parts; a thread that wants the lock otherwise gets it only after the switch interval, several times for one request.
PAUSE_SECONDS = 0.0005
_BEGIN = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"images"[ \t\r\n]*:[ \t\r\n]*\[(?=[ \t\r\n]*\[[ \t\r\n]*\[)')
_END = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\Z")
# of the end of the body, in which it is looked for
MAX_END_BYTES = 1_000
# the comma between two images
_COMMA = re.compile(rb"\][ \t\r\n]*\][ \t\r\n]*(,)[ \t\r\n]*\[[ \t\r\n]*\[")


def read(body: bytes, limit: int) -> Images:
    """The images (n, 28, 28) of `{"images": [image, image, ...]}`.

    Raises orjson.JSONDecodeError with the place in the body, and ValueError for wrong values, more than `limit` images, or another form.
    """
    found: list[Images] = []
    n = 0
    for place, part in _parts(body):
        try:
            values = orjson.loads(part)
        except orjson.JSONDecodeError as error:
            raise orjson.JSONDecodeError(error.msg, body.decode("latin-1"), place + error.pos) from None
        refuse_booleans(part)
        found.append(from_json(values, limit=len(values), first=n))
        n += len(values)
        time.sleep(PAUSE_SECONDS)
    if n > limit:
        raise ValueError(f"images holds {n:,} images; expected at most {limit:,} in one request")
    return np.concatenate(found)


def refuse_booleans(text: bytes) -> None:
    """Raises ValueError for JSON with true or false in it, which `from_json` takes for 1 and 0."""
    # testing for "e" first spares most bodies two searches
    if text.find(b"e", max(text.find(b"["), 0)) >= 0 and (b"true" in text or b"false" in text):
        raise ValueError("images contains true or false; expected whole numbers from 0 to 255")


def _parts(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The position of each part, and its images as a JSON list; a body that is not JSON has a part that is not."""
    begin, end = _BEGIN.match(body), _END.search(body, len(body) - MAX_END_BYTES)
    if begin is None or end is None:
        raise ValueError(f'the body has {len(body):,} bytes and is not {{"images": [image, image, ...]}}; send that')
    # each place is that of the bracket or comma before an image
    place = begin.end() - 1
    while place < end.start():
        comma = _COMMA.search(body, place + PART_BYTES, place + PART_BYTES + MAX_IMAGE_BYTES)
        stop = comma.start(1) if comma else end.start()
        if stop - place > PART_BYTES + MAX_IMAGE_BYTES:
            expected = f"expected images of 28 rows of 28 whole numbers, in at most {MAX_IMAGE_BYTES:,} bytes each"
            raise ValueError(f"images has no image that ends between the bytes {place:,} and {stop:,}; {expected}")
        yield place, b"[" + body[place + 1 : stop] + b"]"
        place = stop
