"""Tells which components of a line may be the sign between two digits: a decimal point or comma, a minus, or a slash."""

from collections.abc import Sequence

import cv2
import numpy as np

from digits.pictures.components import Component
from digits.pictures.text_lines import DIGIT_HEIGHT

CLEAR, POSSIBLE = -5.0, -10.0
"""Log-weights in nats: of a sign that looks like one, which beats dirt, and of one that only a pattern asks for."""

# In digit heights:
_TALL = 0.5  # of a digit
_DOT, _COMMA = (0.08, 0.28), (0.15, 0.5)  # least and greatest side
_ON_LINE, _BELOW_LINE = (
    0.12,
    0.08,
)  # from the feet of the digits to that of a dot at most, and to that of a comma at least
_MINUS_WIDTH, _MINUS_HEIGHT = (0.2, 0.9), 0.25
_SLASH_HEIGHT, _LONG_SLASH = 0.8, 1.25
_AWAY = 0.06  # paper on both sides
_FULL = 0.5  # of a dot's rectangle
_SLANT = (0.25, 1.2)  # of a slash, pixels across per pixel up
_SLIM = 4.0  # length over breadth of a slash


def log_weights(components: Sequence[Component], part: Component) -> dict[str, float]:
    """The signs that a component may be with their log-weights; none unless digits stand on both sides."""
    tall = [other for other in components if other is not part and other.height >= _TALL * DIGIT_HEIGHT]
    before = [one for one in tall if one.left + one.width / 2 < part.left]
    after = [one for one in tall if one.left + one.width / 2 > part.right]
    if not before or not after:
        return {}
    left, right = max(before, key=lambda one: one.right), min(after, key=lambda one: one.left)
    if part.height >= _SLASH_HEIGHT * DIGIT_HEIGHT:
        return _slash(part)
    if min(part.left - left.right, right.left - part.right) < _AWAY * DIGIT_HEIGHT:
        return {}
    return _mark(part, (left.top + right.top) / 2, (left.bottom + right.bottom) / 2)


def _mark(part: Component, top: float, bottom: float) -> dict[str, float]:
    """A point, comma or minus between digits with this top and bottom."""
    height, width = part.height / DIGIT_HEIGHT, part.width / DIGIT_HEIGHT
    middle = ((part.top + part.bottom) / 2 - top) / max(1.0, bottom - top)
    below = (part.bottom - bottom) / DIGIT_HEIGHT
    is_full = part.mask.mean() >= _FULL
    if is_full and _DOT[0] <= min(height, width) and max(height, width) <= _DOT[1] and abs(below) <= _ON_LINE:
        return {".": CLEAR, ",": POSSIBLE}
    if _COMMA[0] <= height <= _COMMA[1] and width < height and below >= _BELOW_LINE and middle > 0.8:
        return {",": CLEAR, ".": POSSIBLE}
    is_level = height <= _MINUS_HEIGHT and width >= 1.6 * height
    if is_level and _MINUS_WIDTH[0] <= width <= _MINUS_WIDTH[1] and 0.25 < middle < 0.75:
        return {"-": CLEAR}
    return {}


def _slash(part: Component) -> dict[str, float]:
    """A straight stroke that leans to the right; a digit's 1 unless it is longer than the digits."""
    y, x = np.nonzero(part.mask)
    _, (one, other), _ = cv2.minAreaRect(np.column_stack([x, y]).astype(np.float32))
    slant = -float(np.polyfit(y, x, 1)[0])
    if not _SLANT[0] <= slant <= _SLANT[1] or max(one, other) < _SLIM * min(one, other):
        return {}
    return {"/": CLEAR + 4 if part.height >= _LONG_SLASH * DIGIT_HEIGHT else POSSIBLE}
