"""Turns pictures into images like MNIST's: the one digit is found among dust and frames, and what is no digit or several is refused."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE
from digits.pictures import picture_files
from digits.pictures.ink import FAINT, Ink, border_of, box_around, find_ink, padded, scaled, window
from digits.pictures.mnist_frame import has_mnist_form, stroke_width, to_mnist
from digits.pictures.picture_files import MAX_PIXELS, Grey

# Longest side in pixels of a picture, and about while the digit is searched in it.
_PICTURE, _SEARCH = 1024, 200
_TINY, _ENLARGED = 32, 128  # longest side of pictures that are enlarged before the search, and afterwards at most


def decode(body: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The (28, 28) image of the digit in an uploaded PNG, JPEG, WebP or BMP picture of any size.

    A 28 x 28 grey picture with light ink on dark paper is returned unchanged, and so is, inverted, one with dark ink on white
    paper whose digit has MNIST's size and place. Raises ValueError when the body is no readable
    picture, has more than `max_pixels`, is blank, or clearly shows no digit or several.
    """
    picture = picture_files.open_upright(body, _PICTURE, max_pixels).image
    grey = picture_files.to_grey(picture, _PICTURE)
    unrepeated = picture_files.unrepeated(grey)
    for possible in (grey, unrepeated):
        if possible.shape == (SIZE, SIZE) and picture_files.is_colourless(picture):
            exact = _already_mnist(possible)
            if exact is not None:
                return exact
    return from_grey(unrepeated)


def use_one_thread() -> None:
    """Let OpenCV work on the calling thread only: its threads wait for each other actively, and a service scales by its workers."""
    cv2.setNumThreads(1)


def from_grey(grey: Grey) -> NDArray[np.uint8]:
    """The (28, 28) image of the digit in a picture; raises ValueError when it is blank, or clearly shows no digit or several."""
    return to_mnist(_digit(grey))


def _already_mnist(grey: Grey) -> NDArray[np.uint8] | None:
    """A (28, 28) picture with light ink on dark paper, or the inverse of what is exactly MNIST's inverse, else None."""
    paper = np.median(border_of(grey))
    if paper <= 64 and grey.max() >= paper + 64:
        return grey
    # Other dark ink on light paper is a digit of any size and place.
    return 255 - grey if has_mnist_form(255 - grey) else None


def _digit(grey: Grey) -> Ink:
    """The ink of the one digit in a picture without dust, frames and the paper around, some 300 pixels high and wide at most."""
    is_tiny = max(grey.shape) <= _TINY
    ink = find_ink(_enlarged(grey) if is_tiny else scaled(grey, 1 / max(1, round(max(grey.shape) / _SEARCH))))
    mask = (ink > (FAINT if is_tiny else 127)).astype(np.uint8)
    # Widening joins broken strokes and keeps the soft edge of the ink.
    wide = cv2.dilate(mask, window(1 + 2 * math.ceil(max(ink.shape) / 256)))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(wide, ltype=cv2.CV_16U)
    kept = _digit_labels(statistics, ink.shape)
    start, size = statistics[kept, :2], statistics[kept, 2:4]
    (left, top), (right, bottom) = start.min(axis=0), (start + size).max(axis=0)
    around = np.s_[top:bottom, left:right]
    is_kept = np.zeros(len(statistics), np.uint8)
    is_kept[kept] = 1
    keep = is_kept[labels[around]]
    mask = mask[around] * keep
    box = box_around(mask)
    _refuse_other_shapes(mask[box])
    return ink[around][box] * keep[box]


def _enlarged(grey: Grey) -> Grey:
    """A tiny picture with a margin of its paper, in which strokes of one pixel have a shape."""
    # No digit fills the corners, however closely it is cut out.
    middle = (int(grey.min()) + int(grey.max())) / 2
    is_paper = (grey > middle) == (grey[[0, 0, -1, -1], [0, -1, 0, -1]].mean() > middle)
    margin = max(3, max(grey.shape) // 4)
    larger = padded(grey, margin, float(np.median(grey[is_paper])))
    return scaled(larger, _ENLARGED // max(larger.shape))


def _digit_labels(statistics: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The labels of the components that make up the one digit; ValueError for several digits, or when none stands out.

    The columns are OpenCV's: left, top, width, height and area of each component, the paper first.
    """
    if len(statistics) == 2:
        return np.array([1], np.int32)
    components = np.column_stack([statistics, np.arange(len(statistics))])[1:]
    components = components[np.argsort(-components[:, cv2.CC_STAT_AREA], kind="stable")]
    is_inside = (components[:, :2] > 0) & (components[:, :2] + components[:, 2:4] < shape[::-1])
    inside = components[is_inside.all(axis=1)]
    # What reaches the border is a frame, a shadow or the neighbouring line.
    if len(inside) and inside[0, cv2.CC_STAT_AREA] >= 0.2 * components[0, cv2.CC_STAT_AREA]:
        components = inside
    area = components[:, cv2.CC_STAT_AREA]
    if len(area) > 12 and area[0] < 0.5 * area.sum():
        found = f"{len(area)} pieces of ink and no digit among them"
        raise ValueError(f"the picture shows {found}; draw one digit on plain paper")
    start, size = components[:, :2], components[:, 2:4]
    # Between the bounding boxes, negative when they overlap.
    gap = (np.maximum(start, start[0]) - np.minimum(start + size, (start + size)[0])).max(axis=1)
    share = np.where(gap <= round(0.15 * size[0].max()), 0.03, 0.08)
    kept = components[area >= share * area[0]]
    _refuse_several(kept)
    return kept[:, -1]


def _refuse_several(components: NDArray[np.int32]) -> None:
    """ValueError when tall pieces are clearly side by side; a four or a zero drawn in two strokes leaves a smaller gap."""
    left, _, width, height, area, _ = components[np.argsort(components[:, cv2.CC_STAT_LEFT])].T
    tall = (height >= 0.7 * height.max()) & (area >= 0.25 * area.max())
    gaps = left[tall][1:] - np.maximum.accumulate((left + width)[tall])[:-1]
    if (gaps >= 0.15 * height.max()).any():
        raise ValueError(f"the picture shows {tall.sum()} digits side by side; send one digit per picture")


def _refuse_other_shapes(digit: NDArray[np.uint8]) -> None:
    """ValueError for shapes that no digit has; the mask is 1 where there is ink, and 0 elsewhere."""
    height, width = digit.shape
    # The widest of MNIST's 10,000 test digits is 2.5 times as wide as high.
    if width > 3 * height:
        raise ValueError(f"the ink is {width / height:.1f} times as wide as high, which is no digit; draw one digit")
    area = cv2.countNonZero(digit)
    if min(height, width) > 0.6 * max(height, width) and area > 0.9 * digit.size:
        raise ValueError("the ink is a solid blob, which is no digit; draw one digit with a thinner pen")
    length = area / stroke_width(padded(digit, 1)) / max(height, width)
    # Among 2,000 of MNIST's test digits the longest is 3.6 times its larger side.
    if length > 12:
        raise ValueError(f"the ink is a tangle {length:.0f} times as long as high, which is no digit; draw one digit")
