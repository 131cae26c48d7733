"""Turns pictures of several digits into lines of ink whose places in the picture are known."""

from dataclasses import dataclass

from digits.pictures import picture_files
from digits.pictures.ink import find_ink, scaled
from digits.pictures.picture_files import MAX_PIXELS
from digits.pictures.ruled_paper import without_rules
from digits.pictures.text_lines import TextLine, text_lines

MAX_SIDE = 1600
"""Pixels of the longest side in which lines are searched: on a page of 40 lines, digits are some 20 pixels high."""

Box = tuple[int, int, int, int]  # left, top, width, height in pixels of the upright picture


@dataclass(frozen=True, eq=False)
class Page:
    """The lines of writing in a picture, from top to bottom."""

    lines: list[TextLine]
    scale: tuple[float, float]  # pixels of the upright picture per pixel in which the lines were found, across and down

    def box(self, line: TextLine, left: float, top: float, right: float, bottom: float) -> Box:
        """The box in the upright picture of one in pixels of the line's ink."""
        across, down = self.scale
        x, y = (across * (line.left + left / line.scale), down * (line.top + top / line.scale))
        return (
            round(x),
            round(y),
            round(across * (right - left) / line.scale),
            round(down * (bottom - top) / line.scale),
        )


def decode(body: bytes, max_pixels: int = MAX_PIXELS) -> Page:
    """The lines of writing in an uploaded PNG, JPEG, WebP or BMP picture of any size.

    Raises ValueError when the body is no readable picture, has more than `max_pixels`, is blank, or has more pieces of ink than a page of digits.
    """
    picture = picture_files.open_upright(body, MAX_SIDE, max_pixels)
    grey = picture_files.to_grey(picture.image, MAX_SIDE)
    grey = scaled(grey, min(1.0, MAX_SIDE / max(grey.shape)))
    height, width = grey.shape
    lines = text_lines(without_rules(find_ink(grey)))
    return Page(lines, (picture.size[0] / width, picture.size[1] / height))
