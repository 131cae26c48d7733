"""Puts the ink between two cuts of a line together to the images that may be its digits."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.components import Component
from digits.pictures.ink import Ink
from digits.pictures.mnist_frame import to_frame
from digits.pictures.seams import MIN_SIDE_AREA, Seam, seams
from digits.pictures.text_lines import DIGIT_HEIGHT

Bounds = tuple[int, int, int, int]  # left, top, right and bottom in pixels of the line

# In digit heights:
_WIDE, _HIGH = 0.4, 0.35  # a component that may be more than one digit
_MAX_CUT_WIDTH, _MAX_CUT_HEIGHT = 12, 3  # more is a scribble
_MAX_WIDTH, _MIN_HEIGHT = 1.5, 0.35  # of a digit
_MAX_GAP = 0.5  # between the components of one digit
_MAX_COMPONENTS = 4  # of a digit


class Node(NamedTuple):
    """Where a digit of the line may begin or end: before a component, or at a cut through it."""

    component: int
    cut: Seam | None


class Region(NamedTuple):
    """The ink between two nodes: a digit, a part of one, or dirt."""

    start: int  # number of a node
    end: int
    pieces: tuple[Component, ...]
    bounds: Bounds
    gap: float  # paper between the pieces, in digit heights

    @property
    def height(self) -> float:
        """In digit heights."""
        return (self.bounds[3] - self.bounds[1]) / DIGIT_HEIGHT

    @property
    def width(self) -> float:
        """In digit heights."""
        return (self.bounds[2] - self.bounds[0]) / DIGIT_HEIGHT

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


def nodes(ink: Ink, components: Sequence[Component], may_be_cut: Sequence[bool]) -> list[Node]:
    """The nodes of a line from left to right; the last one is behind all components."""
    found = []
    for number, component in enumerate(components):
        found.append(Node(number, None))
        is_wide = _WIDE < component.width / DIGIT_HEIGHT < _MAX_CUT_WIDTH
        if may_be_cut[number] and is_wide and _HIGH < component.height / DIGIT_HEIGHT < _MAX_CUT_HEIGHT:
            found += [Node(number, seam) for seam in seams(ink, component)]
    return [*found, Node(len(components), None)]


def regions(components: Sequence[Component], nodes: Sequence[Node]) -> list[Region]:
    """All that may be one digit or a part of one, and each component as a whole, by start and end."""
    at = [number for number, node in enumerate(nodes) if node.cut is None]
    inside = (one for first, last in pairwise(at) for one in _within(components, nodes, first, last))
    known = {(one.start, one.end): one for one in inside}
    joined = [
        one
        for first in range(len(components))
        for last in range(first + 1, min(len(components), first + _MAX_COMPONENTS))
        for one in _joined(known, at, first, last)
    ]
    return sorted([*known.values(), *joined], key=lambda one: (one.start, one.end))


def _within(components: Sequence[Component], nodes: Sequence[Node], first: int, last: int) -> Iterator[Region]:
    """The regions of one component."""
    component = components[nodes[first].component]
    yield region(first, last, component)
    cuts = [node.cut.is_left for node in nodes[first + 1 : last] if node.cut]
    left = [np.zeros_like(component.mask), *cuts, component.mask]
    ends = [cv2.boundingRect(ink.astype(np.uint8)) for ink in left]
    starts = [cv2.boundingRect((component.mask & ~ink).astype(np.uint8))[0] for ink in left]
    for start, end in combinations(range(len(left)), 2):
        if ends[end][0] + ends[end][2] - starts[start] > 2 * _MAX_WIDTH * DIGIT_HEIGHT or end - start == last - first:
            continue
        # Seams that cross have ink that is on the right of one and on the left of the other.
        if np.count_nonzero(left[start] & ~left[end]) > MIN_SIDE_AREA:
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
    left, top, right, bottom = region.bounds
    page = np.zeros((bottom - top, right - left), np.uint8)
    for piece in region.pieces:
        rows, columns = np.s_[piece.top : piece.bottom], np.s_[piece.left : piece.right]
        page[piece.top - top : piece.bottom - top, piece.left - left : piece.right - left] |= np.where(
            piece.mask, ink[rows, columns], 0
        ).astype(np.uint8)
    return to_frame(page)
