"""Digits in ways of writing that MNIST's writers, from the United States, seldom use, drawn stroke by stroke.

A one with a long flag or a base, an open four like a flash of lightning, a crossed seven, a nine with a hook, a crossed zero.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.ink import Ink

Random = np.random.Generator
Points = tuple[tuple[float, float], ...]  # across and down, from 0 to 1

SIDE = 80  # pixels of a digit's box
MARGIN = 40
MIN_PEN, MAX_PEN = 5, 18  # pixels; MNIST's pen would have about 10
MIN_WIDTH, MAX_WIDTH = 0.5, 1.0  # of the height
MAX_SLANT, MAX_JITTER = 0.3, 0.045  # pixels across per pixel down; standard deviation of each point in sides of the box
MAX_ROUNDING = 4  # times that corners are cut

_LOOP: Points = ((0.8, 0.15), (0.5, 0.0), (0.2, 0.1), (0.15, 0.35), (0.45, 0.48), (0.75, 0.35), (0.8, 0.15))
STYLES: tuple[tuple[int, tuple[Points, ...]], ...] = (
    (0, (((0.5, 0), (0.1, 0.2), (0.1, 0.8), (0.5, 1), (0.9, 0.8), (0.9, 0.2), (0.5, 0)), ((0.95, 0.0), (0.05, 1.0)))),
    (1, (((0.2, 0.3), (0.6, 0.0), (0.6, 1.0)),)),
    (1, (((0.0, 0.5), (0.6, 0.0), (0.55, 1.0)),)),
    (1, (((0.2, 0.25), (0.55, 0.0), (0.55, 1.0)), ((0.1, 1.0), (1.0, 1.0)))),
    (2, (((0.1, 0.25), (0.4, 0.0), (0.85, 0.15), (0.7, 0.5), (0.05, 1.0), (0.95, 0.95)),)),
    (3, (((0.1, 0.03), (0.9, 0.0), (0.4, 0.4), (0.9, 0.6), (0.75, 0.95), (0.3, 1.0), (0.05, 0.85)),)),
    (4, (((0.5, 0.0), (0.05, 0.62), (0.95, 0.55)), ((0.65, 0.35), (0.55, 1.0)))),
    (4, (((0.65, 0.0), (0.1, 0.55), (0.75, 0.5)), ((0.8, 0.2), (0.45, 1.0)))),
    (4, (((0.5, 0.0), (0.05, 0.55), (0.1, 0.75), (0.95, 0.68)), ((0.8, 0.3), (0.5, 1.0)))),
    (4, (((0.35, 0.05), (0.05, 0.65), (0.9, 0.7)), ((0.75, 0.4), (0.6, 1.0)))),
    (4, (((0.7, 0.0), (0.05, 0.65), (0.65, 0.72)), ((0.95, 0.35), (0.5, 1.0)))),
    (4, (((0.6, 0.0), (0.3, 0.3), (0.05, 0.7), (0.25, 0.78), (0.7, 0.68)), ((0.9, 0.4), (0.6, 0.75), (0.5, 1.0)))),
    (4, (((0.75, 1.0), (0.75, 0.0), (0.0, 0.68), (1.0, 0.68)),)),
    (5, (((0.9, 0.0), (0.2, 0.02), (0.15, 0.45), (0.6, 0.4), (0.9, 0.65), (0.7, 0.95), (0.05, 0.97)),)),
    (6, (((0.75, 0.0), (0.3, 0.3), (0.1, 0.75), (0.4, 1.0), (0.85, 0.85), (0.75, 0.55), (0.4, 0.5), (0.15, 0.7)),)),
    (7, (((0.0, 0.05), (0.95, 0.0), (0.35, 1.0)), ((0.25, 0.5), (0.85, 0.45)))),
    (7, (((0.0, 0.2), (0.05, 0.03), (0.95, 0.0), (0.5, 0.5), (0.35, 1.0)), ((0.2, 0.55), (0.9, 0.5)))),
    (8, (_LOOP, ((0.45, 0.48), (0.1, 0.65), (0.15, 0.95), (0.5, 1.0), (0.9, 0.9), (0.85, 0.6), (0.45, 0.48)))),
    (9, (_LOOP, ((0.8, 0.1), (0.82, 0.6), (0.7, 0.95), (0.35, 1.0), (0.1, 0.85)))),
    (9, (_LOOP, ((0.8, 0.1), (0.75, 0.5), (0.6, 1.0)))),
    (9, (_LOOP, ((0.7, 0.35), (0.95, 0.75), (0.9, 0.95), (0.1, 1.0)))),
)
"""The digit and the strokes of each way."""


def written(random: Random) -> Iterator[tuple[Ink, int]]:
    """Digits of all ways of writing with their labels, of several pens, widths and slants, without end."""
    while True:
        label, strokes = STYLES[random.integers(len(STYLES))]
        yield _drawn(strokes, random), label


def _drawn(strokes: tuple[Points, ...], random: Random) -> Ink:
    ink = np.zeros((SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), np.uint8)
    pen, width, slant = (
        int(random.integers(MIN_PEN, MAX_PEN + 1)),
        random.uniform(MIN_WIDTH, MAX_WIDTH),
        random.uniform(-MAX_SLANT, MAX_SLANT),
    )
    rounding = int(random.integers(MAX_ROUNDING + 1))
    for stroke in strokes:
        points = np.array(stroke) + random.normal(0, MAX_JITTER, (len(stroke), 2))
        across = MARGIN + SIDE * (width * points[:, 0] + slant * (0.5 - points[:, 1]))
        curve = _rounded(np.stack([across, MARGIN + SIDE * points[:, 1]], axis=1), rounding)
        cv2.polylines(ink, [np.rint(curve).astype(np.int32)], False, 255, pen, cv2.LINE_AA)
    return ink


def _rounded(points: NDArray[np.float64], times: int) -> NDArray[np.float64]:
    """The line with its corners cut (Chaikin 1974), its ends where they were."""
    for _ in range(times):
        before, after = points[:-1], points[1:]
        cut = np.stack([0.75 * before + 0.25 * after, 0.25 * before + 0.75 * after], axis=1).reshape(-1, 2)
        points = np.concatenate([points[:1], cut[1:-1], points[-1:]])
    return points
