"""Ruled lines, squares and boxes are removed; the strokes that cross or stand on them stay."""

import cv2
import numpy as np
import pytest

from digits.pictures.ink import Ink
from digits.pictures.ruled_paper import without_rules

STROKE = np.s_[40:120, 150:160]


def paper(*rules: tuple[int, int, int, int]) -> Ink:
    """An upright stroke that stands on a row, and faint rules from a point to another."""
    ink = np.zeros((200, 300), np.uint8)
    for x1, y1, x2, y2 in rules:
        cv2.line(ink, (x1, y1), (x2, y2), 130, 2)
    ink[STROKE] = 255
    return ink


@pytest.mark.parametrize(
    "rules",
    [
        [(0, 119, 299, 119)],
        [(0, 112, 299, 122), (0, 30, 299, 40)],
        [
            *((0, row, 299, row) for row in range(20, 200, 50)),
            *((column, 0, column, 199) for column in range(30, 300, 50)),
        ],
        [(100, 20, 200, 20), (200, 20, 200, 140), (200, 140, 100, 140), (100, 140, 100, 20)],
    ],
    ids=["ruled", "crooked", "squared", "box"],
)
def test_only_the_stroke_stays(rules: list[tuple[int, int, int, int]]) -> None:
    left = without_rules(paper(*rules))
    assert (left[STROKE] > 0).mean() > 0.95
    around = left.copy()
    around[STROKE] = 0
    assert np.count_nonzero(around) < 0.1 * np.count_nonzero(paper(*rules))


def test_a_zero_is_no_frame() -> None:
    ink = np.zeros((200, 200), np.uint8)
    cv2.ellipse(ink, (100, 100), (45, 70), 0, 0, 360, 255, 10)
    assert (without_rules(ink) == ink).all()
