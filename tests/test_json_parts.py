"""Large JSON bodies are read in parts: the same images and errors as of the whole, wherever the parts begin."""

import json
from typing import Any

import numpy as np
import orjson
import pytest

from digits.images import from_json
from services import json_parts

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
BODY = orjson.dumps({"images": IMAGES.tolist()})
# between two images in the middle
MIDDLE = BODY.index(b"]],[[", len(BODY) // 2)


def changed(value: Any) -> bytes:
    images = IMAGES.tolist()
    images[250][3][4] = value
    return orjson.dumps({"images": images})


def replaced(text: bytes) -> bytes:
    """Another text between two images."""
    return BODY[:MIDDLE] + text + BODY[MIDDLE + 5 :]


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("kind", [int, float])
def test_the_images_are_those_of_the_whole_body(indent: int | None, kind: type) -> None:
    body = b" \n" + json.dumps({"images": IMAGES.astype(kind).tolist()}, indent=indent).encode() + b"\n"
    assert len(list(json_parts._parts(body))) > 5
    assert np.array_equal(json_parts.read(body, 300), IMAGES)


@pytest.mark.parametrize("value", [256, 0.5, -1, "7", None, [], {}])
def test_a_wrong_value_has_the_error_of_the_whole_body(value: Any) -> None:
    body = changed(value)
    with pytest.raises(ValueError, match="image 250, row 3, column 4 is ") as expected:
        from_json(orjson.loads(body)["images"])
    with pytest.raises(ValueError) as found:
        json_parts.read(body, 300)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (BODY, "images holds 300 images; expected at most 299"),
        (changed(True), "images contains true or false"),
        (BODY[:-1], "is not {"),
        (BODY[:-1] + b', "more": 1}', "is not {"),
        (b'{"images": "' + b"a" * 200_000 + b'"}', "is not {"),
        (b'{"images": [[[' + b"1," * 500_000 + b"1]]]}", "no image that ends between the bytes 11 and 1,000,017"),
        (b'{"images": [[[]]' + b" " * 500_000 + b"]}", "no image that ends between"),
    ],
)
def test_other_bodies_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_parts.read(body, 299)


@pytest.mark.parametrize("text", [b"]],,[[", b"]],NaN,[[", b"]],\x0c[[", b"]]],[[[", b"]],[]],[["])
def test_a_body_that_is_not_json_is_refused_with_the_place(text: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError) as expected:
        orjson.loads(replaced(text))
    with pytest.raises(orjson.JSONDecodeError) as found:
        json_parts.read(replaced(text), 300)
    assert found.value.pos == pytest.approx(expected.value.pos, abs=1)
