"""Lines of writing are found at any slope up to ten degrees, without dust."""

import cv2
import numpy as np
import pytest

from digits.pictures import text_lines
from digits.pictures.ink import Ink


def writing(rows: int, columns: int, slope: float = 0.0, height: int = 30) -> Ink:
    """Upright strokes in rows."""
    ink = np.zeros((rows * 70 + 220, columns * 40 + 80), np.uint8)
    for row in range(rows):
        for column in range(columns):
            x = 40 + 40 * column
            y = int(110 + 70 * row + slope * x)
            cv2.line(ink, (x, y), (x, y + height), 255, 5)
    return ink


@pytest.mark.parametrize("slope", [-0.17, -0.05, 0.0, 0.1, 0.17])
def test_lines_from_top_to_bottom(slope: float) -> None:
    lines = text_lines.text_lines(writing(3, 8, slope))
    assert len(lines) == 3
    assert [line.top for line in lines] == sorted(line.top for line in lines)
    assert all(abs(line.slope - slope) < 0.04 for line in lines)


def test_digits_are_scaled_to_one_height() -> None:
    for height in (12, 30, 55):
        (line,) = text_lines.text_lines(writing(1, 4, height=height))
        rows = np.flatnonzero((line.ink > 127).any(axis=1))
        assert abs(np.ptp(rows) + 1 - text_lines.DIGIT_HEIGHT) <= 4


def test_dust_makes_no_line_and_a_dot_belongs_to_the_nearest() -> None:
    ink = writing(1, 4)
    ink[10:12, 10:12] = 255  # dust
    ink[134:140, 58:64] = 255
    (line,) = text_lines.text_lines(ink)
    assert cv2.connectedComponents((line.ink > 127).astype(np.uint8))[0] - 1 == 5


def test_paper_has_no_line() -> None:
    assert text_lines.text_lines(np.zeros((50, 50), np.uint8)) == []


def test_a_texture_is_refused() -> None:
    ink = np.zeros((600, 600), np.uint8)
    ink[::12, ::12] = ink[1::12, ::12] = ink[::12, 1::12] = ink[1::12, 1::12] = 255
    with pytest.raises(ValueError, match="2,500 pieces of ink, more than the 1,000"):
        text_lines.text_lines(ink)


def test_writing_of_a_few_pixels_is_refused_before_it_is_enlarged() -> None:
    ink = np.zeros((1600, 1600), np.uint8)
    for row in range(390):
        ink[4 * row, 4 * row % 800 : 4 * row % 800 + 8] = ink[4 * row, 1590:1598] = 255
    with pytest.raises(ValueError, match="the writing is 1 pixels high"):
        text_lines.text_lines(ink)


def test_a_line_that_would_be_too_large_is_refused() -> None:
    ink = np.zeros((1600, 1600), np.uint8)
    for place in range(0, 1500, 8):
        ink[place // 6 : place // 6 + 7, place : place + 4] = 255
    with pytest.raises(ValueError, match="more than 8,000,000"):
        _ = [line.ink for line in text_lines.text_lines(ink)]


def test_a_thin_stroke_beside_a_blob_is_no_error() -> None:
    ink = np.zeros((100, 400), np.uint8)
    ink[50, 50:350] = ink[20:60, 5:45] = 255
    assert len(text_lines.text_lines(ink)) <= 2
