"""Puts the ink of one digit into MNIST's frame: a stroke as wide as MNIST's, 20 x 20 pixels, the centre of mass in the middle of 28 x 28.

MNIST fits each digit into 20 x 20 pixels with anti-aliasing and puts its centre of mass in the middle of 28 x 28
(https://yann.lecun.com/exdb/mnist/), and the models are trained on such images.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE
from digits.pictures.ink import FAINT, Ink, box_around, padded, scaled, window

# Longest side in pixels of a digit while its stroke is changed, and in MNIST.
_FINE, _DIGIT = 120, 20
# Stroke widths of MNIST's test digits, as `stroke_width` estimates them at 20 pixels: 5 % 1.75, median 2.5, 95 % 3.9, 99 % 4.7.
_THINNEST, _THIN, _THICK, _THICKEST = 1.8, 2.1, 3.7, 4.4


def to_mnist(ink: Ink) -> NDArray[np.uint8]:
    """The (28, 28) image of a digit's ink without the paper around it, with a stroke as wide as MNIST's; blank where there is none."""
    mask = (ink > FAINT).astype(np.uint8)
    return to_frame(_even_stroke(ink[box_around(mask)])) if mask.any() else np.zeros((SIZE, SIZE), np.uint8)


def to_frame(digit: Ink) -> NDArray[np.uint8]:
    """Scaled to 20 pixels on its longest side and placed in 28 x 28 so that its centre of mass is where MNIST's is.

    On MNIST's 10,000 test digits it is between 13.5 and 14.5 in both directions, without exception.
    """
    small = scaled(digit, _DIGIT / max(digit.shape))
    height, width = small.shape
    moments = cv2.moments(small)
    mass = max(moments["m00"], 1e-6)
    top = min(max(math.floor(14.5 - moments["m01"] / mass), 0), SIZE - height)
    left = min(max(math.floor(14.5 - moments["m10"] / mass), 0), SIZE - width)
    image = np.zeros((SIZE, SIZE), np.uint8)
    image[top : top + height, left : left + width] = small
    return image


def has_mnist_form(image: NDArray[np.uint8]) -> bool:
    """Whether the paper is 0, and the ink's strength, size and place are those of MNIST's 70,000 images.

    Their longer side is 20 pixels, in 16 of them 19, and their centre of mass lies between 13.48 and 14.50.
    """
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    if image.max() < 64 or not 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= _DIGIT:
        return False
    moments = cv2.moments(image)
    return all(13.4 <= moments[name] / moments["m00"] <= 14.6 for name in ("m01", "m10"))


def _even_stroke(digit: Ink) -> Ink:
    """The digit at 120 pixels with a stroke as wide as MNIST's: at 28 x 28 a fine pen would fade and a broad one fill the loops."""
    fine = padded(scaled(digit, _FINE / max(digit.shape)), 24)
    # A slim one would lose its ends.
    fine = even_stroke(fine, _FINE, may_thin=min(digit.shape) > max(digit.shape) // 4)
    return fine[box_around((fine > FAINT).astype(np.uint8))] if fine.max() > FAINT else fine


def even_stroke(ink: Ink, digit_height: float, may_thin: bool = True) -> Ink:
    """The ink of digits of this height in pixels, with strokes that are neither finer nor broader than MNIST's."""
    stroke = stroke_width(ink) * _DIGIT / digit_height
    if stroke < _THINNEST:
        return np.asarray(cv2.dilate(ink, _stroke_window(_THIN - stroke, digit_height)), np.uint8)
    if stroke > _THICKEST and may_thin:
        return np.asarray(cv2.erode(ink, _stroke_window(min(stroke - _THICK, 0.4 * stroke), digit_height)), np.uint8)
    return ink


def _stroke_window(pixels: float, digit_height: float) -> NDArray[np.uint8]:
    """The window of a dilation or erosion that changes the stroke by about so many of MNIST's pixels."""
    return window(1 + 2 * max(1, min(11, round(pixels * digit_height / _DIGIT / 2))))


def stroke_width(ink: Ink) -> float:
    """Pixels: twice the area over the outline; 4 / pi corrects the outline counted along rows and columns."""
    outline = sum(cv2.norm(one, other, cv2.NORM_L1) for one, other in ((ink[1:], ink[:-1]), (ink[:, 1:], ink[:, :-1])))
    return float(2 * cv2.sumElems(ink)[0] / max(outline * np.pi / 4, 1e-6))
