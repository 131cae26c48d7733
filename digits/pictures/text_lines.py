"""Finds the lines of writing in the ink of a picture, level or slanted by up to eleven degrees, from top to bottom."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.ink import Ink

DIGIT_HEIGHT = 48
"""Of a line's ink, to which each line is scaled: 2.4 times MNIST's 20 pixels, so that cuts are fine enough."""

MAX_PIECES = 1000
"""Of a page: some 800 digits and their broken strokes are read in seconds."""

MIN_DIGIT_HEIGHT = 6
"""Pixels: fewer do not tell digits apart."""

MAX_LINE_PIXELS = 8_000_000
"""Of a line at the size in which it is read: each takes a few bytes while the line is cut."""

INK = 110  # of 255: ink from which pixels are connected
_MIN_AREA, _MIN_SIDE = 0.004, 0.12  # of a piece, in squared digit heights and digit heights; less is dust
_TALL = 0.5  # of a digit height: such pieces make the lines, and lower ones belong to the nearest
_MAX_SLOPE, _SLOPE_STEP = 0.2, 0.01  # pixels down per pixel across: 11 degrees
_MAX_SHIFT, _MAX_SHIFT_PER_GAP = 0.5, 0.06  # of neighbours on a line, in digit heights
_BINS = 20  # of the profile across, per digit height
_SMOOTH = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)  # over 0.1 of a digit height
_MARGIN = 3  # pixels of paper around a line


@dataclass(frozen=True, eq=False)
class TextLine:
    """One line of writing."""

    scale: float  # pixels of the line's ink per pixel of the picture
    left: int  # of the ink in the picture
    top: int
    slope: float  # pixels down per pixel across
    _picture: Ink
    _own: NDArray[np.bool_]  # (height, width): the pixels of this line in the picture, from `left` and `top`

    @property
    def ink(self) -> Ink:
        """The ink of the line alone, its digits about 48 pixels high.

        Raises ValueError for a line that is too large at this size.
        """
        width, height = (max(1, round(side * self.scale)) for side in self._own.shape[::-1])
        if width * height > MAX_LINE_PIXELS:
            found = f"a line of the picture has {width:,} x {height:,} pixels at the size in which it is read"
            raise ValueError(f"{found}, more than {MAX_LINE_PIXELS:,}; send a smaller part of the page, or a level one")
        # the soft edge, too
        own: Any = cv2.dilate(self._own.astype(np.uint8), np.ones((3, 3), np.uint8))
        rows, columns = self._own.shape
        place = np.s_[self.top : self.top + rows, self.left : self.left + columns]
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        only = np.where(own, self._picture[place], 0).astype(np.uint8)
        return np.asarray(cv2.resize(only, (width, height), interpolation=method), np.uint8)


@dataclass(frozen=True, eq=False)
class _Pieces:
    """The connected pieces of ink without dust; arrays of length n."""

    labels: NDArray[np.int32]  # (height, width): the label of each pixel's piece, 0 for paper
    numbers: NDArray[np.int64]  # the label of each piece
    left: NDArray[np.float64]
    top: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    digit_height: float

    @property
    def right(self) -> NDArray[np.float64]:
        return self.left + self.width

    @property
    def bottom(self) -> NDArray[np.float64]:
        return self.top + self.height

    @property
    def is_tall(self) -> NDArray[np.bool_]:
        return self.height >= _TALL * self.digit_height


def text_lines(ink: Ink) -> list[TextLine]:
    """The lines of writing; none where there is no ink.

    Raises ValueError for more pieces of ink than a page has digits, and for writing that is too small.
    """
    pieces = _pieces(ink)
    if not pieces.is_tall.any():
        return []
    if pieces.digit_height < MIN_DIGIT_HEIGHT:
        found = f"the writing is {pieces.digit_height:.0f} pixels high"
        raise ValueError(f"{found}; send a picture in which digits are at least {MIN_DIGIT_HEIGHT} pixels high")
    slope = _slope(pieces)
    return [_line(ink, pieces, line, slope) for line in _grouped(pieces, slope)]


def _pieces(ink: Ink) -> _Pieces:
    """The connected pieces of ink (height, width) that are neither dust nor much smaller than the digits."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((ink > INK).astype(np.uint8))
    left, top, width, height, area = statistics[1:].T.astype(np.float64)
    digit_height = 0.0
    if len(area):
        heights = height[area >= 0.1 * area.max()]
        digit_height = float(np.median(heights[heights >= 0.5 * np.quantile(heights, 0.9)]))
    least = max(4, _MIN_AREA * digit_height**2)
    kept = (area >= least) & (np.maximum(width, height) >= _MIN_SIDE * digit_height)
    numbers = np.flatnonzero(kept) + 1
    if len(numbers) > MAX_PIECES:
        found = f"{len(numbers):,} pieces of ink, more than the {MAX_PIECES:,} of a page of digits"
        raise ValueError(f"the picture shows {found}; send one with fewer lines, or without texture")
    return _Pieces(
        np.asarray(labels, np.int32), numbers, left[kept], top[kept], width[kept], height[kept], digit_height
    )


def _slope(pieces: _Pieces) -> float:
    """The slope at which the pieces stand on the fewest rows: the largest sum of squares of the profile across (Postl 1986)."""
    tall = pieces.is_tall
    across, middle = ((pieces.left + pieces.right) / 2)[tall], ((pieces.top + pieces.bottom) / 2)[tall]
    slopes = np.arange(-_MAX_SLOPE, _MAX_SLOPE + _SLOPE_STEP / 2, _SLOPE_STEP)
    return float(
        max(slopes, key=lambda slope: _peaks((middle - slope * across) / pieces.digit_height) - 0.5 * abs(slope))
    )


def _peaks(rows: NDArray[np.float64]) -> float:
    """The sum of squares of the smoothed profile of rows in digit heights; n ** 2 for n pieces on one row."""
    bins = ((rows - rows.min()) * _BINS).astype(np.int64)
    profile = np.convolve(np.bincount(bins), _SMOOTH)
    return float((profile**2).sum() / (_SMOOTH**2).sum())


def _grouped(pieces: _Pieces, slope: float) -> list[NDArray[np.int64]]:
    """The indices of the pieces of each line, lines from top to bottom."""
    across, middle = (pieces.left + pieces.right) / 2, (pieces.top + pieces.bottom) / 2
    rows, tall = middle - slope * across, np.flatnonzero(pieces.is_tall)
    line_of = np.arange(len(across))
    for piece in tall:
        after = tall[across[tall] > across[piece]]
        gap = np.maximum(pieces.left[after] - pieces.right[piece], 0)
        shift = np.abs(rows[after] - rows[piece])
        near = shift <= _MAX_SHIFT * pieces.digit_height + _MAX_SHIFT_PER_GAP * gap
        if near.any():
            nearest = after[near][np.argmin((gap + 1.5 * shift)[near])]
            line_of[line_of == line_of[nearest]] = line_of[piece]
    for piece in np.flatnonzero(~pieces.is_tall):
        aside = np.maximum(pieces.left[tall] - pieces.right[piece], pieces.left[piece] - pieces.right[tall]).clip(0)
        above = np.maximum(pieces.top[tall] - pieces.bottom[piece], pieces.top[piece] - pieces.bottom[tall]).clip(0)
        distance = np.hypot(aside, above)
        line_of[piece] = line_of[tall[np.argmin(distance)]] if distance.min() < 0.9 * pieces.digit_height else -1
    lines = [np.flatnonzero(line_of == line) for line in np.unique(line_of[tall])]
    return sorted(lines, key=lambda line: float(rows[line][pieces.is_tall[line]].mean()))


def _line(ink: Ink, pieces: _Pieces, line: NDArray[np.int64], slope: float) -> TextLine:
    """The line of the pieces with these indices."""
    left, top = (max(0, int(side[line].min()) - _MARGIN) for side in (pieces.left, pieces.top))
    right, bottom = (int(side[line].max()) + _MARGIN for side in (pieces.right, pieces.bottom))
    own = np.isin(pieces.labels[top:bottom, left:right], pieces.numbers[line])
    height = float(np.median(pieces.height[line][pieces.is_tall[line]]))
    return TextLine(DIGIT_HEIGHT / height, left, top, slope, ink, own)
