"""A picture of several lines: their places are those of the upright picture."""

import io

import numpy as np
import pytest
from PIL import Image

from digits.pictures import pages


def png(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("factor", [1, 8])
@pytest.mark.parametrize("is_blackboard", [False, True])
def test_the_box_of_a_line_is_in_pixels_of_the_picture(factor: int, is_blackboard: bool) -> None:
    picture = np.full((200, 300), 255, np.uint8)
    picture[60:100, 50:56] = picture[60:100, 90:96] = picture[130:170, 70:76] = 0
    picture = np.kron(255 - picture if is_blackboard else picture, np.ones((factor, factor), np.uint8))
    page = pages.decode(png(picture))
    boxes = [page.box(line, 0, 0, line.ink.shape[1], line.ink.shape[0]) for line in page.lines]
    assert len(boxes) == 2
    for (left, top, width, height), expected in zip(boxes, [(50, 60, 46, 40), (70, 130, 6, 40)], strict=True):
        x, y, w, h = expected
        margins = np.array([x - left / factor, y - top / factor])
        margins = np.append(margins, [(left + width) / factor - x - w, (top + height) / factor - y - h])
        assert (margins > -1).all()
        assert (margins < 4.5).all()


def test_a_blank_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="blank"):
        pages.decode(png(np.full((100, 100), 200, np.uint8)))
