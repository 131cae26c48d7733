"""Cuts components where digits may touch.

A cut is a seam: a path from top to bottom that crosses little ink (candidate cuts as in Casey and Lecolinet 1996, "A survey of methods
and strategies in character segmentation"). Seams may cross each other: what lies between any two of them may be a digit.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.components import Component, Mask
from digits.pictures.ink import Ink
from digits.pictures.text_lines import DIGIT_HEIGHT, INK

_MARGIN = 2  # pixels of paper around a component, through which seams run
# Of a seam, in pixels of ink: the price of a step to the side, and the most that it crosses.
_SIDESTEP, _MAX_CROSSED = 0.1, 0.7 * DIGIT_HEIGHT
# The next seam crosses ink at least this far, in pixels, from where the former were searched.
_NEXT = round(0.06 * DIGIT_HEIGHT)
# Pixels on either side of a seam, and pixels in which two seams differ.
MIN_SIDE_AREA, _MIN_DIFFERENCE = 0.012 * DIGIT_HEIGHT**2, 0.02 * DIGIT_HEIGHT**2
_MAX_SEAMS_PER_HEIGHT = 24  # of a component's width
# Where two strokes touch along their sides, the ink is thicker than a stroke: there it costs down to a tenth.
_THICK, _LESS_PER_THICKNESS, _CHEAPEST = 0.8, 3.0, 0.1


class Seam(NamedTuple):
    """A cut through a component."""

    is_left: Mask  # the ink on its left
    crossed: float  # ink on its path in digit heights, less where the ink is thick


def seams(ink: Ink, component: Component) -> list[Seam]:
    """The seams of a component, ordered by the ink on their left."""
    rows, columns = np.s_[component.top : component.bottom], np.s_[component.left : component.right]
    own = np.where(component.mask, ink[rows, columns], 0).astype(np.uint8)
    mask = np.pad(component.mask, _MARGIN)
    price = _price(np.pad(own, _MARGIN))
    paths = _MinimumPaths(price), _MinimumPaths(price[::-1])
    through = paths[0].total + paths[1].total[::-1] - price
    y, x = np.nonzero(mask & (through <= _MAX_CROSSED))
    limit = max(1, round(_MAX_SEAMS_PER_HEIGHT * component.width / DIGIT_HEIGHT))
    found: list[Seam] = []
    n_lefts: list[int] = []  # pixels on the left of each
    is_free, area = np.ones(mask.shape, np.uint8), int(np.count_nonzero(mask))
    for index in np.argsort(through[y, x], kind="stable").tolist():
        row, column = int(y[index]), int(x[index])
        if not is_free[row, column]:
            continue
        cv2.circle(is_free, (column, row), _NEXT, 0, -1)
        # the columns of its rows from the pixel upwards and downwards
        seam = [*paths[0].back(row, column)[:0:-1], *paths[1].back(len(mask) - 1 - row, column)]
        is_left = mask & (np.arange(mask.shape[1]) < np.array(seam)[:, None])
        n_left = int(np.count_nonzero(is_left))
        alike = [
            other for other, n_other in zip(found, n_lefts, strict=True) if abs(n_left - n_other) < _MIN_DIFFERENCE
        ]
        is_new = all(np.count_nonzero(is_left ^ other.is_left) >= _MIN_DIFFERENCE for other in alike)
        if min(n_left, area - n_left) >= MIN_SIDE_AREA and is_new:
            found.append(Seam(is_left, float(through[row, column]) / DIGIT_HEIGHT))
            n_lefts.append(n_left)
        if len(found) == limit:
            break
    inner = np.s_[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    found.sort(key=lambda seam: np.count_nonzero(seam.is_left))
    return [Seam(seam.is_left[inner], seam.crossed) for seam in found]


def _price(ink: Ink) -> NDArray[np.float32]:
    """What a seam pays for each pixel, (height, width)."""
    mask = (ink > INK).astype(np.uint8)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    # The mean depth of a stroke is half of its greatest one.
    thickness = depth / (2 * cv2.mean(depth, mask)[0])
    less = np.clip(1 - _LESS_PER_THICKNESS * (thickness - _THICK), _CHEAPEST, 1)
    return np.asarray(ink * (less / 255), np.float32)


class _MinimumPaths:
    """The minimum paths from the top of a component down to each of its pixels."""

    def __init__(self, price: NDArray[np.float32]) -> None:
        height, width = price.shape
        columns = np.arange(width)
        self.total = np.zeros((height, width), np.float32)
        # Columns where a path enters its row, and where it leaves the one above.
        entry, above = np.zeros((2, height, width), np.int64)
        before = np.zeros(width, np.float32)
        for row in range(height):
            fenced = np.pad(before, 1, constant_values=np.inf)
            steps = np.stack([fenced[1:-1], fenced[:-2] + _SIDESTEP, fenced[2:] + _SIDESTEP])
            step = steps.argmin(axis=0)
            above[row] = columns + np.array([0, -1, 1])[step]
            best, pay = steps[step, columns] + price[row], price[row] + np.float32(_SIDESTEP)
            rightwards, enters = _along(best, pay)
            leftwards, mirrored = (values[::-1] for values in _along(best[::-1], pay[::-1]))
            self.total[row] = before = np.minimum(rightwards, leftwards)
            entry[row] = np.where(rightwards <= leftwards, enters, width - 1 - mirrored)
        self._entry, self._above = entry.tolist(), above.tolist()

    def back(self, row: int, column: int) -> list[int]:
        """The columns in which the path to a pixel meets its row, and those above it."""
        columns = [column]
        for at in range(row, 0, -1):
            column = self._above[at][self._entry[at][column]]
            columns.append(column)
        return columns


def _along(best: NDArray[np.float32], pay: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The minimum path to each pixel of a row that enters at a price and goes on to the right, and where it enters."""
    paid = np.cumsum(pay)
    lead = best - paid
    least = np.minimum.accumulate(lead)
    return least + paid, np.maximum.accumulate(np.where(lead <= least, np.arange(len(best)), 0))
