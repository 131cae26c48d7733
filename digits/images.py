"""The pixel contract: images are `uint8`, shape `(n, 28, 28)`, 0 = paper, 255 = ink.

Images are checked at three borders (a file ingested, a request, a log read) and trusted inside.
"""

import json
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 28
PIXELS = SIZE * SIZE
Images = NDArray[np.uint8]  # (n, 28, 28), 0 = paper, 255 = ink
Labels = NDArray[np.uint8]  # (n,), 0 to 9

MAX_IMAGES = 1_000  # in one JSON request; more go as raw bytes


def check(images: Any) -> Images:
    """The images themselves; raises ValueError unless they are a `uint8` array of shape (n, 28, 28), n >= 1."""
    if not isinstance(images, np.ndarray):
        raise ValueError(f"expected uint8 images of shape (n, 28, 28), got {type(images).__name__}")
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        raise ValueError(f"expected uint8 images of shape (n, 28, 28), got {images.dtype} {images.shape}")
    return images


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images; raises ValueError unless they keep the pixel contract. The arrays are read-only."""

    images: Images  # (n, 28, 28)
    labels: Labels  # (n,)

    def __post_init__(self) -> None:
        check(self.images)
        if getattr(self.labels, "dtype", None) != np.uint8 or self.labels.shape != (len(self.images),):
            got = f"{getattr(self.labels, 'dtype', type(self.labels).__name__)} {np.shape(self.labels)}"
            raise ValueError(f"expected uint8 labels of shape ({len(self.images)},), got {got}")
        if self.labels.max() > 9:
            row = int(np.argmax(self.labels > 9))
            raise ValueError(f"expected labels 0 to 9, got {self.labels[row]} in row {row} (counted from 0)")
        object.__setattr__(self, "images", _read_only(self.images))
        object.__setattr__(self, "labels", _read_only(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> list[int]:
        """How many images of each digit, 0 to 9."""
        return [int(count) for count in np.bincount(self.labels, minlength=10)]


def is_single(value: Any) -> bool:
    """Whether a JSON value is one image (rows of numbers) rather than a list of images."""
    return not (
        isinstance(value, list) and value and isinstance(value[0], list) and value[0] and isinstance(value[0][0], list)
    )


def from_json(value: Any, limit: int = MAX_IMAGES) -> Images:
    """One 28 x 28 nested list of whole numbers from 0 to 255, or a list of up to `limit` of them, as images.

    Raises ValueError quoting the first wrong value and where it stands, counted from 0.
    """
    many = [value] if is_single(value) else value
    if len(many) > limit:
        raise ValueError(f"images holds {len(many):,} images; expected at most {limit:,} in one request")
    try:
        if set(map(len, many)) == {SIZE} and set(map(len, chain.from_iterable(many))) == {SIZE}:
            # bytes() of a list accepts nothing but whole numbers from 0 to 255, three times faster than np.array
            content = b"".join(map(bytes, chain.from_iterable(many)))
            return np.frombuffer(content, np.uint8).reshape(-1, SIZE, SIZE)
    except (TypeError, ValueError, OverflowError):
        pass  # floats, or something wrong: worth a closer look
    return np.stack(
        [_image(image, f"image {index}" if not is_single(value) else "") for index, image in enumerate(many)]
    )


def _image(rows: Any, where: str) -> NDArray[np.uint8]:
    """(28, 28) from nested lists that may hold floats without a fraction; raises ValueError on the first wrong value."""
    if not isinstance(rows, list):
        raise ValueError(
            f"{where or 'images'} is {quote(rows)}; expected {SIZE} rows of {SIZE} whole numbers from 0 to 255"
        )
    if len(rows) == SIZE * SIZE:
        raise ValueError(f"{where or 'images'} is a flat list of {SIZE * SIZE}; expected {SIZE} rows of {SIZE} numbers")
    if len(rows) != SIZE:
        raise ValueError(f"{where or 'images'} has {len(rows)} rows; expected {SIZE} rows of {SIZE} numbers")
    prefix = f"{where}, " if where else ""
    return np.array([_row(row, f"{prefix}row {index}") for index, row in enumerate(rows)], np.uint8)


def _row(row: Any, where: str) -> list[int]:
    if not isinstance(row, list):
        raise ValueError(f"{where} is {quote(row)}; expected {SIZE} whole numbers from 0 to 255")
    if len(row) != SIZE:
        raise ValueError(f"{where} has {len(row)} numbers; expected {SIZE}")
    for column, pixel in enumerate(row):
        whole = isinstance(pixel, (int, float)) and not isinstance(pixel, bool)
        if not (whole and 0 <= pixel <= 255 and pixel == int(pixel)):
            raise ValueError(f"{where}, column {column} is {quote(pixel)}; expected a whole number from 0 to 255")
    return [int(pixel) for pixel in row]


def quote(value: Any) -> str:
    """A value as it stood in the JSON, cut short."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value[:40] if isinstance(value, str) else value, default=repr)
    return text if len(text) <= 44 else f"{text[:40]}..."


def _read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
