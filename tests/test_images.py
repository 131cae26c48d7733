"""The pixel contract and its JSON form."""

from typing import Any

import numpy as np
import pytest

from digits import images as pixels


def nested(count: int = 4) -> list[Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28)).tolist()


def test_json_round_trips_one_and_many() -> None:
    value = nested()
    assert np.array_equal(pixels.from_json(value), np.array(value))
    assert np.array_equal(pixels.from_json(value[2])[0], np.array(value[2]))
    assert pixels.from_json(value[0]).dtype == np.uint8


def test_json_takes_floats_that_are_whole() -> None:
    value = nested(2)
    value[1][3][4] = 12.0
    assert pixels.from_json(value)[1, 3, 4] == 12


@pytest.mark.parametrize("wrong, quoted", [(300, "300"), (-1, "-1"), (1.5, "1.5"), (float("nan"), "NaN"), (float("inf"), "Infinity"),
                                           ("12", '"12"'), (None, "null"), ([1], "a list of 1"), (10**30, "1" + 30 * "0")])  # fmt: skip
def test_json_says_which_pixel_is_wrong(wrong: Any, quoted: str) -> None:
    value = nested()
    value[3][5][7] = wrong
    sentence = f"image 3, row 5, column 7 is {quoted}; expected a whole number from 0 to 255"
    with pytest.raises(ValueError) as caught:
        pixels.from_json(value)
    assert str(caught.value) == sentence
    with pytest.raises(ValueError) as caught:
        pixels.from_json(value[3])
    assert str(caught.value) == sentence.removeprefix("image 3, ")


@pytest.mark.parametrize(
    "value, sentence",
    [
        (5, "images is 5; expected 28 rows"),
        ([], "images has 0 rows"),
        ([[[]]], "image 0 has 1 rows"),
        ({"a": 1}, "images is an object of 1"),
        (nested(1)[0][:27], "images has 27 rows"),
        ([row[:27] for row in nested(1)[0]], "row 0 has 27 numbers"),
        ([28] * 28, "row 0 is 28; expected 28 whole numbers"),
        (["a" * 28] * 28, 'row 0 is "aaaa'),
        ([*nested(2), 7], "image 2 is 7"),
        ([*nested(2), nested(1)[0][:3]], "image 2 has 3 rows"),
        ([0] * 784, "a flat list of 784"),
        (nested(11), "images holds 11 images; expected at most 10"),
    ],
)
def test_json_of_another_shape_is_refused(value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pixels.from_json(value, limit=10)
