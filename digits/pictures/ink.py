"""Estimates how much ink covers each pixel of a picture, whatever its polarity and light; operations on images of ink."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.picture_files import Grey

Ink = NDArray[np.uint8]  # (height, width), 0 = paper, 255 = ink

FAINT = 80  # of 255: ink from which a pixel belongs to a digit rather than to its soft edge

_LIGHT = 50  # pixels, about: the longest side at which the light on a picture is estimated
# Weight of a difference from the paper as evidence of ink: cubed, so that a few strong ones outweigh many weak ones.
_DIFFERENCE_WEIGHTS = np.maximum(np.arange(256) - 5, 0) ** 3


def find_ink(grey: Grey) -> Ink:
    """How much ink covers each pixel: polarity from the paper, uneven light removed, faint ink strengthened."""
    small = scaled(grey, 1 / max(1, round(max(grey.shape) / _LIGHT)))
    # Paper is in the majority around each pixel.
    paper = cv2.medianBlur(small, 1 + 2 * (max(small.shape) // 5))
    differences = cv2.subtract(paper, small), cv2.subtract(small, paper)
    darker, lighter = (_DIFFERENCE_WEIGHTS[difference].sum() for difference in differences)
    if lighter > darker:
        grey, small = 255 - grey, 255 - small
    light: Any = cv2.resize(_light(small), grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
    # Of 255; a floor, because the darkest paper has noise only.
    ink: Any = cv2.divide(cv2.subtract(light, grey), np.maximum(light, 13), scale=255)
    threshold, _ = cv2.threshold(ink, 0, 255, cv2.THRESH_OTSU)
    counts = cv2.calcHist([ink], [0], None, [256], [0, 256]).ravel()
    weak, strong = np.split(counts, [int(threshold) + 1])
    peak = threshold + 1 + _quantile(strong, 0.8) if strong.any() else 0.0
    mean, deviation = _moments(weak) if weak.any() else (0.0, 0.0)
    floor = mean + 2 * deviation
    if peak < 0.04 * 255 or floor > 0.8 * peak:
        raise ValueError(
            f"the picture is blank (ink and paper differ by {peak / 255:.0%}); write in it with more contrast"
        )
    levels = np.rint(np.clip((np.arange(256) - floor) * (255 / (peak - floor)), 0, 255))
    return np.asarray(cv2.LUT(ink, levels.astype(np.uint8)), np.uint8)


def _quantile(counts: NDArray[Any], share: float) -> int:
    """The quantile of a histogram with bins 0, 1, 2, ..."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, share * total[-1]))


def _moments(counts: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of a histogram with bins 0, 1, 2, ..."""
    values, shares = np.arange(len(counts)), counts / counts.sum()
    mean = float(values @ shares)
    return mean, math.sqrt((values - mean) ** 2 @ shares)


def _light(grey: Grey) -> Grey:
    """The light on the paper below dark ink."""
    border = np.sort(border_of(grey))
    dark, median, bright = (int(border[int(share * len(border))]) for share in (0.25, 0.5, 0.95))
    # Ink may touch the border.
    if bright - dark <= 0.06 * np.ptp(grey):
        return np.full_like(grey, median)
    # A closing wider than any stroke removes the ink and leaves the light.
    light = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, window(1 + 2 * (max(grey.shape) // 12)))
    return np.asarray(cv2.blur(light, (5, 5)), np.uint8)


def border_of(grey: Grey) -> NDArray[np.uint8]:
    """The outermost 4 % of a picture's pixels on each side, where there is paper, as a flat array."""
    thickness = max(1, round(0.04 * min(grey.shape)))
    ring = np.ones(grey.shape, bool)
    ring[thickness:-thickness, thickness:-thickness] = False
    return grey[ring]


def scaled(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Another size: each pixel is the mean of those it covers, or cubic between its neighbours when the picture grows."""
    height, width = (max(1, int(scale * side + 0.5)) for side in picture.shape)
    if picture.shape == (height, width):
        return picture
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=method), np.uint8)


def padded(picture: NDArray[np.uint8], margin: int, value: float = 0) -> NDArray[np.uint8]:
    """With a margin of so many pixels of this value on all sides."""
    sides = margin, margin, margin, margin
    return np.asarray(cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=value), np.uint8)


def window(width: int, height: int | None = None) -> NDArray[np.uint8]:
    """The window of a dilation, erosion or closing, by default a square."""
    return np.ones((height or width, width), np.uint8)


def box_around(mask: NDArray[np.uint8]) -> tuple[slice, slice]:
    """The rows and columns of the rectangle around the pixels that are not 0."""
    left, top, width, height = cv2.boundingRect(mask)
    return np.s_[top : top + height, left : left + width]
