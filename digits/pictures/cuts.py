"""Cuts the ink of a line where digits may touch, and puts it together to the images that may be its digits.

A cut is a seam: a path from top to bottom that passes little ink (candidate cuts as in Casey and Lecolinet 1996, "A survey of methods
and strategies in character segmentation"). Seams may cross each other: what lies between any two of them may be a digit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.ink import Ink
from digits.pictures.mnist_frame import to_frame
from digits.pictures.text_lines import DIGIT_HEIGHT

Mask = NDArray[np.bool_]  # (height, width)
Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels of the line

_INK = 110  # of 255: ink from which pixels are connected
_MIN_AREA = 0.004 * DIGIT_HEIGHT**2  # pixels of a component; less is dust
_MARGIN = 2  # pixels of paper around a component, through which seams run
# In digit heights:
_WIDE, _HIGH = 0.4, 0.35  # a component that may be more than one digit
_MAX_CUT_WIDTH, _MAX_CUT_HEIGHT = 12, 3  # more is a scribble
_MAX_WIDTH, _MIN_HEIGHT = 1.5, 0.35  # of a digit
_MAX_GAP = 0.5  # between the components of one digit
_MAX_COMPONENTS = 4  # of a digit

# Of a seam, in pixels of ink: the price of a step to the side, and the most that it passes.
_SIDESTEP, _MAX_PASSED = 0.1, 0.7 * DIGIT_HEIGHT
# The next seam passes ink at least this far, in pixels, from where the former were searched.
_NEXT = round(0.06 * DIGIT_HEIGHT)
# Pixels on either side of a seam, and pixels in which two seams differ.
_MIN_SIDE, _MIN_DIFFERENCE = 0.012 * DIGIT_HEIGHT**2, 0.02 * DIGIT_HEIGHT**2
_MAX_SEAMS_PER_HEIGHT = 24  # of a component's width
# Where two strokes touch along their sides, the ink is thicker than a stroke: there it costs down to a tenth.
_THICK, _LESS_PER_THICKNESS, _CHEAPEST = 0.8, 3.0, 0.1


@dataclass(frozen=True, eq=False)
class Component:
    """A connected piece of ink."""

    mask: Mask
    left: int  # pixels of the line, as `top`
    top: int

    @property
    def height(self) -> int:
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


class Seam(NamedTuple):
    """A cut through a component."""

    is_left: Mask  # the ink on its left
    passed: float  # ink on its way in digit heights, less where the ink is thick


class Place(NamedTuple):
    """Where a digit of the line may begin or end: before a component, or at a cut through it."""

    component: int
    cut: Seam | None


class Region(NamedTuple):
    """The ink between two places: a digit, a part of one, or dirt."""

    start: int  # number of a place
    end: int
    pieces: tuple[Component, ...]
    box: Box
    gap: float  # paper between the pieces, in digit heights

    @property
    def height(self) -> float:
        """In digit heights."""
        return (self.box[3] - self.box[1]) / DIGIT_HEIGHT

    @property
    def width(self) -> float:
        """In digit heights."""
        return (self.box[2] - self.box[0]) / DIGIT_HEIGHT

    @property
    def may_be_digit(self) -> bool:
        return self.height >= _MIN_HEIGHT and self.width <= _MAX_WIDTH


def region(start: int, end: int, *pieces: Component) -> Region:
    """What these pieces are together."""
    gap, right = 0, pieces[0].right
    for piece in pieces:
        gap, right = gap + max(0, piece.left - right), max(right, piece.right)
    left, top = min(piece.left for piece in pieces), min(piece.top for piece in pieces)
    return Region(start, end, pieces, (left, top, right, max(piece.bottom for piece in pieces)), gap / DIGIT_HEIGHT)


def components(ink: Ink) -> list[Component]:
    """The components of a line from left to right."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((ink > _INK).astype(np.uint8))
    middle = statistics[:, cv2.CC_STAT_LEFT] + statistics[:, cv2.CC_STAT_WIDTH] / 2
    found = []
    for label in np.argsort(middle, kind="stable").tolist():
        left, top, width, height, area = map(int, statistics[label])
        if label > 0 and area >= _MIN_AREA:
            found.append(Component(labels[top : top + height, left : left + width] == label, left, top))
    return found


def places(ink: Ink, found: Sequence[Component], may_be_cut: Sequence[bool]) -> list[Place]:
    """The places of a line from left to right; the last one is behind all components."""
    line = []
    for number, component in enumerate(found):
        line.append(Place(number, None))
        is_wide = _WIDE < component.width / DIGIT_HEIGHT < _MAX_CUT_WIDTH
        if may_be_cut[number] and is_wide and _HIGH < component.height / DIGIT_HEIGHT < _MAX_CUT_HEIGHT:
            line += [Place(number, seam) for seam in seams(ink, component)]
    return [*line, Place(len(found), None)]


def seams(ink: Ink, component: Component) -> list[Seam]:
    """The seams of a component, ordered by the ink on their left."""
    rows, columns = np.s_[component.top : component.bottom], np.s_[component.left : component.right]
    own = np.where(component.mask, ink[rows, columns], 0).astype(np.uint8)
    mask = np.pad(component.mask, _MARGIN)
    price = _price(np.pad(own, _MARGIN))
    ways = _Ways(price), _Ways(price[::-1])
    through = ways[0].total + ways[1].total[::-1] - price
    y, x = np.nonzero(mask & (through <= _MAX_PASSED))
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
        seam = [*ways[0].back(row, column)[:0:-1], *ways[1].back(len(mask) - 1 - row, column)]
        is_left = mask & (np.arange(mask.shape[1]) < np.array(seam)[:, None])
        n_left = int(np.count_nonzero(is_left))
        alike = [
            other for other, n_other in zip(found, n_lefts, strict=True) if abs(n_left - n_other) < _MIN_DIFFERENCE
        ]
        is_new = all(np.count_nonzero(is_left ^ other.is_left) >= _MIN_DIFFERENCE for other in alike)
        if min(n_left, area - n_left) >= _MIN_SIDE and is_new:
            found.append(Seam(is_left, float(through[row, column]) / DIGIT_HEIGHT))
            n_lefts.append(n_left)
        if len(found) == limit:
            break
    inner = np.s_[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    found.sort(key=lambda seam: np.count_nonzero(seam.is_left))
    return [Seam(seam.is_left[inner], seam.passed) for seam in found]


def _price(ink: Ink) -> NDArray[np.float32]:
    """What a seam pays for each pixel, (height, width)."""
    mask = (ink > _INK).astype(np.uint8)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    # The mean depth of a stroke is half of its greatest one.
    thickness = depth / (2 * cv2.mean(depth, mask)[0])
    less = np.clip(1 - _LESS_PER_THICKNESS * (thickness - _THICK), _CHEAPEST, 1)
    return np.asarray(ink * (less / 255), np.float32)


class _Ways:
    """The cheapest ways from the top of a component down to each of its pixels."""

    def __init__(self, price: NDArray[np.float32]) -> None:
        height, width = price.shape
        columns = np.arange(width)
        self.total = np.zeros((height, width), np.float32)
        entry, above = np.zeros(
            (2, height, width), np.int64
        )  # column where a way enters its row, and leaves the one above
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
        """The columns in which the way to a pixel meets its row, and those above it."""
        columns = [column]
        for at in range(row, 0, -1):
            column = self._above[at][self._entry[at][column]]
            columns.append(column)
        return columns


def _along(best: NDArray[np.float32], pay: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The cheapest way to each pixel of a row that enters at a price and goes on to the right, and where it enters."""
    paid = np.cumsum(pay)
    lead = best - paid
    least = np.minimum.accumulate(lead)
    return least + paid, np.maximum.accumulate(np.where(lead <= least, np.arange(len(best)), 0))


def regions(found: Sequence[Component], line: Sequence[Place]) -> list[Region]:
    """All that may be one digit or a part of one, and each component as a whole, by start and end."""
    at = [number for number, place in enumerate(line) if place.cut is None]
    inside = (one for first, last in pairwise(at) for one in _within(found, line, first, last))
    known = {(one.start, one.end): one for one in inside}
    joined = [
        one
        for first in range(len(found))
        for last in range(first + 1, min(len(found), first + _MAX_COMPONENTS))
        for one in _joined(known, at, first, last)
    ]
    return sorted([*known.values(), *joined], key=lambda one: (one.start, one.end))


def _within(found: Sequence[Component], line: Sequence[Place], first: int, last: int) -> Iterator[Region]:
    """The regions of one component."""
    component = found[line[first].component]
    yield region(first, last, component)
    cuts = [place.cut.is_left for place in line[first + 1 : last] if place.cut]
    left = [np.zeros_like(component.mask), *cuts, component.mask]
    ends = [cv2.boundingRect(ink.astype(np.uint8)) for ink in left]
    starts = [cv2.boundingRect((component.mask & ~ink).astype(np.uint8))[0] for ink in left]
    for start, end in combinations(range(len(left)), 2):
        if ends[end][0] + ends[end][2] - starts[start] > 2 * _MAX_WIDTH * DIGIT_HEIGHT or end - start == last - first:
            continue
        # Seams that cross have ink that is on the right of one and on the left of the other.
        if np.count_nonzero(left[start] & ~left[end]) > _MIN_SIDE:
            continue
        piece = left[end] & ~left[start]
        x, y, width, height = cv2.boundingRect(piece.astype(np.uint8))
        if 0 < width <= _MAX_WIDTH * DIGIT_HEIGHT:
            mask = piece[y : y + height, x : x + width]
            yield region(first + start, first + end, Component(mask, component.left + x, component.top + y))


def _joined(known: dict[tuple[int, int], Region], at: Sequence[int], first: int, last: int) -> Iterator[Region]:
    """The regions from one component to another of which at most one is cut."""
    between = [known[one] for one in pairwise(at[first + 1 : last + 1])]
    starts = range(at[first], at[first + 1])
    ends = range(at[last] + 1, at[last + 1] + 1)
    pairs = {(start, at[last + 1]) for start in starts} | {(at[first], end) for end in ends}
    for start, end in sorted(pairs):
        parts = [known.get((start, at[first + 1])), *between, known.get((at[last], end))]
        one = region(start, end, *(piece for part in parts if part for piece in part.pieces))
        if None not in parts and one.gap <= _MAX_GAP and one.width <= _MAX_WIDTH:
            yield one


def image(ink: Ink, region: Region) -> NDArray[np.uint8]:
    """The (28, 28) image of a region, at MNIST's size and place."""
    left, top, right, bottom = region.box
    page = np.zeros((bottom - top, right - left), np.uint8)
    for piece in region.pieces:
        rows, columns = np.s_[piece.top : piece.bottom], np.s_[piece.left : piece.right]
        page[piece.top - top : piece.bottom - top, piece.left - left : piece.right - left] |= np.where(
            piece.mask, ink[rows, columns], 0
        ).astype(np.uint8)
    return to_frame(page)
