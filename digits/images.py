"""The pixel contract: images are `uint8`, shape `(n, 28, 28)`, 0 = paper, 255 = ink.

Images are checked at three borders (a file ingested, a request, a log read) and trusted inside.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.errors import quote

SIZE = 28
PIXELS = SIZE * SIZE
Images = NDArray[np.uint8]  # (n, 28, 28), 0 = paper, 255 = ink
Labels = NDArray[np.uint8]  # (n,), 0 to 9
NO_DIGIT = 10  # the label of an image that shows no digit; no split of a data set has it
PredictProba = Callable[[Images], NDArray[np.float32]]  # images (n, 28, 28) to probabilities (n, 10)

MAX_IMAGES = 1_000  # in one JSON request; larger batches are sent as raw bytes


def check(images: NDArray[Any]) -> Images:
    """`images`; raises ValueError unless they are a `uint8` array of shape (n, 28, 28), n >= 1."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        raise ValueError(f"expected uint8 images of shape (n, 28, 28), got {images.dtype} {images.shape}")
    return images


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in read-only arrays; raises ValueError unless they fulfil the pixel contract."""

    images: Images  # (n, 28, 28)
    labels: Labels  # (n,)

    def __post_init__(self) -> None:
        check(self.images)
        kind = getattr(self.labels, "dtype", type(self.labels).__name__)
        if kind != np.uint8 or self.labels.shape != (len(self.images),):
            got = f"{kind} {np.shape(self.labels)}"
            raise ValueError(f"expected uint8 labels of shape ({len(self.images)},), got {got}")
        if self.labels.max() > 9:
            row = int(np.argmax(self.labels > 9))
            raise ValueError(f"expected labels 0 to 9, got {self.labels[row]} in row {row} (counted from 0)")
        for name in ("images", "labels"):
            view = np.ascontiguousarray(getattr(self, name)).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> list[int]:
        """The number of images of each digit, 0 to 9."""
        return [int(count) for count in np.bincount(self.labels, minlength=10)]


def is_single(value: Any) -> bool:
    """Whether a JSON value is one image (rows of numbers) rather than a list of images."""
    image = value[0] if isinstance(value, list) and value else None
    return not (isinstance(image, list) and image and isinstance(image[0], list))


def from_json(value: Any, limit: int = MAX_IMAGES, first: int = 0) -> Images:
    """The images of one 28 x 28 nested list of whole numbers from 0 to 255, or of a list of up to `limit` of them.

    Raises ValueError quoting the first wrong value and its position, counted from 0; `first` is that of the first image.
    """
    single = is_single(value)
    images = [value] if single else value
    if len(images) > limit:
        raise ValueError(f"images holds {len(images):,} images; expected at most {limit:,} in one request")
    try:
        if set(map(len, images)) == {SIZE} and set(map(len, chain.from_iterable(images))) == {SIZE}:
            with suppress(TypeError, ValueError):
                # bytes() of a list accepts only whole numbers from 0 to 255, three times faster than np.array.
                content = b"".join(map(bytes, chain.from_iterable(images)))
                return np.frombuffer(content, np.uint8).reshape(-1, SIZE, SIZE)
            values = _numbers(images)
            if (right := (values >= 0) & (values <= 255) & (values == np.floor(values))).all():
                return values.astype(np.uint8)
            # its error names the value
            wrong = int(np.argmin(right.all((1, 2))))
            _image(images[wrong], "" if single else f"image {first + wrong}")
    except (TypeError, OverflowError):
        pass
    return np.stack([_image(rows, "" if single else f"image {index}") for index, rows in enumerate(images, first)])


def _numbers(images: list[Any]) -> NDArray[np.float64]:
    """(n, 28, 28) from nested lists of that shape; raises TypeError unless all values are numbers, and OverflowError beyond floats."""
    kinds = set(map(type, chain.from_iterable(chain.from_iterable(images))))
    if not kinds <= {int, float}:
        raise TypeError(f"expected numbers, got {kinds}")
    return np.array(images, np.float64)


def _image(rows: Any, name: str) -> NDArray[np.uint8]:
    """(28, 28) from nested lists whose numbers may be floats; raises ValueError on the first wrong value."""
    expected = f"expected {SIZE} rows of {SIZE} whole numbers from 0 to 255"
    if not isinstance(rows, list):
        raise ValueError(f"{name or 'images'} is {quote(rows)}; {expected}")
    if len(rows) != SIZE:
        found = f"is a flat list of {PIXELS}" if len(rows) == PIXELS else f"has {len(rows)} rows"
        raise ValueError(f"{name or 'images'} {found}; {expected}")
    prefix = f"{name}, " if name else ""
    return np.array([_row(row, f"{prefix}row {index}") for index, row in enumerate(rows)], np.uint8)


def _row(row: Any, name: str) -> list[int]:
    if not isinstance(row, list):
        raise ValueError(f"{name} is {quote(row)}; expected {SIZE} whole numbers from 0 to 255")
    if len(row) != SIZE:
        raise ValueError(f"{name} has {len(row)} numbers; expected {SIZE}")
    for column, pixel in enumerate(row):
        is_number = isinstance(pixel, (int, float)) and not isinstance(pixel, bool)
        if not (is_number and 0 <= pixel <= 255 and pixel == int(pixel)):
            raise ValueError(f"{name}, column {column} is {quote(pixel)}; expected a whole number from 0 to 255")
    return [int(pixel) for pixel in row]
