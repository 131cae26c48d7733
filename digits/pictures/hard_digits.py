"""Digits as they arrive in the field and not in MNIST: of other styles, scanned coarsely, or cut from a neighbour that they touch."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Split
from digits.pictures import rectification, styles
from digits.pictures.ink import FAINT, Ink
from digits.pictures.mnist_frame import to_mnist

Random = np.random.Generator
Labelled = tuple[NDArray[np.uint8], int]  # an image (28, 28) and its digit

MAX_CHANGE = 0.25  # of a digit's ink that a cut may add or remove
MIN_INK = 25  # pixels
LEVELS = 16  # of grey in a coarse scan


def styled(count: int, random: Random) -> Split:
    """`count` digits of the styles that MNIST's writers seldom use."""
    return _take(((to_mnist(ink), label) for ink, label in styles.written(random)), count)


def coarse(digits: Split, count: int, random: Random) -> Split:
    """`count` of these digits, scanned at 7 to 12 pixels of height and 16 levels of grey, wider by up to a half, as the service sees them."""
    return _take(_coarse(digits, random), count)


def cut(digits: Split, count: int, random: Random) -> Split:
    """`count` of these digits, cut from a neighbour that they touch: with a sliver of it, or without a sliver of their own."""
    return _take(_cut(digits, random), count)


def _take(found: Iterator[Labelled], count: int) -> Split:
    some = list(islice(found, count))
    images = np.array([image for image, _ in some], np.uint8).reshape(-1, SIZE, SIZE)
    return Split(images, np.array([label for _, label in some], np.uint8))


def _coarse(digits: Split, random: Random) -> Iterator[Labelled]:
    while True:
        index = int(random.integers(len(digits)))
        left, top, width, height = cv2.boundingRect((digits.images[index] > FAINT).astype(np.uint8))
        if not width:
            continue
        digit = digits.images[index, top : top + height, left : left + width]
        rows = int(random.integers(7, 13))
        columns = int(np.clip(round(rows * width / height * random.uniform(0.9, 1.5)), 2, rows))
        fine = cv2.resize(digit, (4 * columns, 4 * rows), interpolation=cv2.INTER_CUBIC)
        # Many scanners give bitmaps; their pixels are counted in blocks.
        if random.random() < 0.7:
            fine = np.where(fine > random.uniform(70, 150), 255, 0).astype(np.uint8)
        scan = cv2.resize(fine, (columns, rows), interpolation=cv2.INTER_AREA)
        # A few are too coarse for a digit to be found.
        with suppress(ValueError):
            image = rectification.from_grey(np.asarray(scan // (256 // LEVELS) * (255 // (LEVELS - 1)), np.uint8))
            yield image, int(digits.labels[index])


def _cut(digits: Split, random: Random) -> Iterator[Labelled]:
    rows, columns = np.mgrid[: SIZE + 8, : 3 * SIZE]
    while True:
        pair = random.integers(len(digits), size=2)
        left, right = (digits.images[index] for index in pair)
        drop = int(random.integers(-3, 4))
        start = _touching(left, np.roll(right, drop, axis=0))
        if start is None:
            continue
        start = max(0, start + int(random.integers(-2, 2)))
        page = np.zeros(rows.shape, np.uint8)
        page[4 : 4 + SIZE, :SIZE] = left
        area = page[4 + drop : 4 + drop + SIZE, start : start + SIZE]
        np.maximum(area, right, out=area)
        # between the end of the left digit and the start of the right one
        middle = (np.flatnonzero((left > FAINT).any(axis=0))[-1] + start + np.argmax((right > FAINT).any(axis=0))) / 2
        beyond = columns + random.uniform(-0.35, 0.35) * (rows - 18) > middle + random.uniform(-2.5, 2.5)
        kept = int(random.integers(2))
        page[beyond != bool(kept)] = 0
        own = np.count_nonzero(digits.images[pair[kept]] > FAINT)
        found = np.count_nonzero(page > FAINT)
        if found >= MIN_INK and abs(found - own) <= MAX_CHANGE * own:
            yield to_mnist(page), int(digits.labels[pair[kept]])


def _touching(left: Ink, right: Ink) -> int | None:
    """The column at which the right digit starts to touch the left one; None if no row has ink of both."""
    ends = np.where((left > FAINT).any(axis=1), SIZE - 1 - np.argmax(left[:, ::-1] > FAINT, axis=1), -SIZE)
    starts = np.where((right > FAINT).any(axis=1), np.argmax(right > FAINT, axis=1), 2 * SIZE)
    gap = int((starts - ends).min())
    return -gap if gap < SIZE else None
