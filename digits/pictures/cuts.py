"""Cuts a line of writing into parts, and puts neighbouring parts together to the images that may be its digits.

Touching digits are cut along seams: paths from top to bottom that pass the least ink (after Fernandez-Mota et al. and the candidate
cuts of segmentation-based recognisers; Casey and Lecolinet 1996, "A survey of methods and strategies in character segmentation").
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.images import Images
from digits.pictures.rectification import Ink, to_frame
from digits.pictures.text_lines import DIGIT_HEIGHT

_INK = 110  # of 255: ink from which pixels are connected
_MIN_AREA = 0.004 * DIGIT_HEIGHT**2  # of a part in pixels; less stays with its neighbour
# All that follow in digit heights.
_WIDE, _HIGH = 0.4, 0.35  # a component that may be more than one digit
_FIRST_CUT, _LAST_CUT, _STEP = 0.12, 0.1, 1 / 12
_REACH = 0.22  # of a seam to either side
_SAME = 0.06  # mean distance of two seams of which one is enough
_MAX_PASSED = 0.9  # ink along a seam
_MAX_WIDTH, _MIN_HEIGHT = 1.5, 0.35  # of a digit
_MAX_PARTS, _MAX_COMPONENTS = 7, 4  # of a digit
# Of a seam: the price of a step to the side, and of a pixel of distance from where it starts, in pixels of ink.
_SIDESTEP, _DISTANCE = 0.03, 0.004


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a line's ink that is not cut further."""

    mask: NDArray[np.bool_]  # (height, width)
    left: int  # pixels of the line, as `top`
    top: int
    passed: float  # ink that the cut at its left passes, in digit heights; 0 where it begins after paper
    component: int

    @property
    def right(self) -> int:
        return self.left + self.mask.shape[1]

    @property
    def bottom(self) -> int:
        return self.top + self.mask.shape[0]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may be the digits of a line; arrays of length n."""

    start: list[int]  # the first part
    end: list[int]  # the one behind the last part
    images: Images  # (n, 28, 28)
    boxes: list[tuple[int, int, int, int]]  # left, top, right and bottom in pixels of the line
    components: list[int]  # number of components put together
    gaps: list[float]  # paper between them, in digit heights


def parts(ink: Ink) -> list[Part]:
    """The parts of a line from left to right."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((ink > _INK).astype(np.uint8))
    middle = statistics[:, cv2.CC_STAT_LEFT] + statistics[:, cv2.CC_STAT_WIDTH] / 2
    found: list[Part] = []
    for label in np.argsort(middle, kind="stable").tolist():
        left, top, width, height, area = map(int, statistics[label])
        if label == 0 or area < _MIN_AREA:
            continue
        place = np.s_[top : top + height, left : left + width]
        component = labels[place] == label
        is_wide = width > _WIDE * DIGIT_HEIGHT and height > _HIGH * DIGIT_HEIGHT
        seams = _seams(np.float32(1 / 255) * np.where(component, ink[place], 0).astype(np.float32)) if is_wide else []
        found += _divided(component, seams, left, top, label)
    return found


def _seams(ink: NDArray[np.float32]) -> list[tuple[NDArray[np.int64], float]]:
    """The column of each row, (height,), and the ink passed of the cheapest seams at all places, from left to right."""
    height, width = ink.shape
    starts = np.arange(
        int(_FIRST_CUT * DIGIT_HEIGHT),
        width - int(_LAST_CUT * DIGIT_HEIGHT),
        max(2, int(_STEP * DIGIT_HEIGHT)),
    )
    if not len(starts):
        return []
    reach = int(_REACH * DIGIT_HEIGHT)
    offsets = np.arange(-reach, reach + 1)
    # Outside the component there is no way.
    fenced = np.pad(ink, ((0, 0), (reach, reach)), constant_values=np.inf)
    window = fenced[:, starts[:, None] + offsets + reach]
    total = window[0] + _DISTANCE * np.abs(offsets, dtype=np.float32)
    steps = np.zeros((height, *total.shape), np.int8)
    for row in range(1, height):
        sides = np.pad(total, ((0, 0), (1, 1)), constant_values=np.inf)
        ways = np.stack([total, sides[:, :-2] + _SIDESTEP, sides[:, 2:] + _SIDESTEP])
        best = ways.argmin(axis=0)
        steps[row] = np.array([0, -1, 1], np.int8)[best]
        total = np.take_along_axis(ways, best[None], 0)[0] + window[row]
    position, rows = total.argmin(axis=1), np.arange(len(starts))
    passed = total[rows, position]
    columns = np.empty((len(starts), height), np.int64)
    for row in range(height - 1, -1, -1):
        columns[:, row] = position + starts - reach
        position = position + steps[row, rows, position]
    return _distinct(columns, passed)


def _distinct(columns: NDArray[np.int64], passed: NDArray[np.float32]) -> list[tuple[NDArray[np.int64], float]]:
    """Of seams that nearly coincide, the cheapest."""
    kept: list[tuple[NDArray[np.int64], float]] = []
    for index in np.argsort(columns.mean(axis=1), kind="stable"):
        seam, price = columns[index], float(passed[index])
        if price > _MAX_PASSED * DIGIT_HEIGHT:
            continue
        if kept and np.abs(seam - kept[-1][0]).mean() < _SAME * DIGIT_HEIGHT:
            if price < kept[-1][1]:
                kept[-1] = seam, price
        else:
            kept.append((seam, price))
    return kept


def _divided(
    component: NDArray[np.bool_], seams: list[tuple[NDArray[np.int64], float]], left: int, top: int, label: int
) -> list[Part]:
    """The parts of a component between its seams."""
    found, passed, taken = [], 0.0, np.zeros_like(component)
    columns = np.arange(component.shape[1])
    for seam, price in [*seams, (np.full(component.shape[0], component.shape[1]), 0.0)]:
        part = component & (columns < seam[:, None]) & ~taken
        if np.count_nonzero(part) < _MIN_AREA:
            continue
        x, y, width, height = cv2.boundingRect(part.astype(np.uint8))
        found.append(Part(part[y : y + height, x : x + width], left + x, top + y, passed, label))
        passed, taken = price / DIGIT_HEIGHT, taken | part
    return found


def candidates(ink: Ink, parts: list[Part]) -> Candidates:
    """All neighbouring parts that are together not too large for a digit, as images at MNIST's size and place."""
    found = Candidates([], [], np.empty((0, 28, 28), np.uint8), [], [], [])
    images = []
    for start in range(len(parts)):
        for end in range(start + 1, min(len(parts), start + _MAX_PARTS) + 1):
            some = parts[start:end]
            left, top = min(part.left for part in some), min(part.top for part in some)
            right, bottom = max(part.right for part in some), max(part.bottom for part in some)
            components = len({part.component for part in some})
            if right - left > _MAX_WIDTH * DIGIT_HEIGHT or components > _MAX_COMPONENTS:
                break
            if bottom - top < _MIN_HEIGHT * DIGIT_HEIGHT:
                continue
            page = np.zeros((bottom - top, right - left), np.uint8)
            for part in some:
                rows, columns = (
                    np.s_[part.top - top : part.bottom - top],
                    np.s_[part.left - left : part.right - left],
                )
                own = np.where(part.mask, ink[part.top : part.bottom, part.left : part.right], 0).astype(np.uint8)
                np.maximum(page[rows, columns], own, out=page[rows, columns])
            images.append(to_frame(page))
            found.start.append(start)
            found.end.append(end)
            found.boxes.append((left, top, right, bottom))
            found.components.append(components)
            found.gaps.append(_paper_between(some))
    return (
        Candidates(found.start, found.end, np.stack(images), found.boxes, found.components, found.gaps)
        if images
        else found
    )


def _paper_between(parts: list[Part]) -> float:
    """The sum of the gaps between parts of different components, in digit heights."""
    gap, right = 0, parts[0].right
    for before, part in pairwise(parts):
        if part.component != before.component:
            gap += max(0, part.left - right)
        right = max(right, part.right)
    return gap / DIGIT_HEIGHT
