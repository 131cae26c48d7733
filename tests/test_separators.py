"""Signs between digits: clear marks only, and no dirt."""

import numpy as np
import pytest

from digits.pictures import separators
from digits.pictures.components import Component

DIGITS = [Component(np.ones((48, 25), bool), left, 10) for left in (0, 80)]  # their feet are at 58


def mark(width: int, height: int, bottom: int, left: int = 48) -> dict[str, float]:
    part = Component(np.ones((height, width), bool), left, bottom - height)
    return separators.log_weights([*DIGITS, part], part)


@pytest.mark.parametrize(
    ("width", "height", "bottom", "sign"),
    [(7, 7, 58, "."), (6, 14, 66, ","), (20, 5, 36, "-")],
)
def test_a_clear_mark(width: int, height: int, bottom: int, sign: str) -> None:
    found = mark(width, height, bottom)
    assert max(found, key=lambda one: found[one]) == sign


@pytest.mark.parametrize(
    ("width", "height", "bottom"),
    [(7, 7, 40), (2, 2, 58), (20, 20, 58), (30, 4, 58), (20, 5, 14)],
    ids=["above the line", "dust", "blob", "rest of a ruled line", "bar of a five"],
)
def test_what_is_no_sign(width: int, height: int, bottom: int) -> None:
    assert mark(width, height, bottom) == {}


def test_a_mark_beside_one_digit_only_or_close_to_it_is_none() -> None:
    assert mark(7, 7, 58, left=120) == {}
    assert mark(7, 7, 58, left=26) == {}


@pytest.mark.parametrize(("height", "is_clear"), [(48, False), (70, True)])
def test_a_slash_is_longer_than_a_one(height: int, is_clear: bool) -> None:
    rows, columns = np.mgrid[:height, : height // 2 + 5]
    part = Component(np.abs(columns + rows / 2 - height / 2 - 2) <= 2.5, 34, 58 - height)
    weight = separators.log_weights([*DIGITS, part], part)["/"]
    assert (weight > separators.POSSIBLE) == is_clear
