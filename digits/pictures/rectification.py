"""Turns pictures into images like MNIST's: the digit is found, its light evened out, scaled to 20 x 20 and centred in 28 x 28.

MNIST fits each digit into 20 x 20 pixels with anti-aliasing and puts its centre of mass in the middle of 28 x 28
(https://yann.lecun.com/exdb/mnist/), and the models are trained on such images.
"""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE
from digits.pictures import picture_files
from digits.pictures.picture_files import MAX_PIXELS, Grey

# Longest side in pixels of a picture, about while the digit is searched in it, while the light is estimated, of the digit found, and in MNIST.
_PICTURE, _SEARCH, _LIGHT, _FINE, _DIGIT = 1024, 200, 50, 120, 20
# Stroke widths of MNIST's test digits, as `_stroke_width` estimates them at 20 pixels: 5 % 1.75, median 2.5, 95 % 3.9, 99 % 4.7.
_THINNEST, _THIN, _THICK, _THICKEST = 1.8, 2.1, 3.7, 4.4

_TINY, _ENLARGED = 32, 128  # longest side of pictures that are enlarged before the search, and afterwards at most

# What a difference from the paper says for ink: the few strong ones are ink, the many weak ones are shades of the paper.
_DIFFERENCE_WEIGHTS = np.maximum(np.arange(256) - 5, 0) ** 3

FAINT = 80  # of 255: ink from which a pixel belongs to a digit rather than to its soft edge

Ink = NDArray[np.uint8]  # (height, width), 0 = paper, 255 = ink


def decode(body: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The (28, 28) image of the digit in an uploaded PNG, JPEG, WebP or BMP picture of any size.

    A 28 x 28 grey picture with light ink on dark paper is returned unchanged, and so is, inverted, one with dark ink on white
    paper whose digit has MNIST's size and place. Raises ValueError when the body is no readable
    picture, has more than `max_pixels`, is blank, or clearly shows no digit or several.
    """
    picture = picture_files.open_upright(body, _PICTURE, max_pixels).image
    grey = picture_files.to_grey(picture, _PICTURE)
    unrepeated = picture_files.unrepeated(grey)
    for possible in (grey, unrepeated):
        if possible.shape == (SIZE, SIZE) and picture_files.is_colourless(picture):
            exact = _already_mnist(possible)
            if exact is not None:
                return exact
    return from_grey(unrepeated)


def use_one_thread() -> None:
    """Let OpenCV work on the calling thread only: its threads wait for each other actively, and a service scales by its workers."""
    cv2.setNumThreads(1)


def from_grey(grey: Grey) -> NDArray[np.uint8]:
    """The (28, 28) image of the digit in a picture; raises ValueError when it is blank, or clearly shows no digit or several."""
    return to_mnist(_digit(grey))


def to_mnist(ink: Ink) -> NDArray[np.uint8]:
    """The (28, 28) image of a digit's ink without the paper around it, with a stroke as wide as MNIST's; blank where there is none."""
    mask = (ink > FAINT).astype(np.uint8)
    return to_frame(_even_stroke(ink[_box(mask)])) if mask.any() else np.zeros((SIZE, SIZE), np.uint8)


def _already_mnist(grey: Grey) -> NDArray[np.uint8] | None:
    """A (28, 28) picture with light ink on dark paper, or the inverse of what is exactly MNIST's inverse, else None."""
    paper = np.median(grey[_ring(grey.shape)])
    if paper <= 64 and grey.max() >= paper + 64:
        return grey
    # Other dark ink on light paper is a digit of any size and place.
    return 255 - grey if _has_mnist_form(255 - grey) else None


def _has_mnist_form(image: NDArray[np.uint8]) -> bool:
    """Whether the paper is 0, and the ink's strength, size and place are those of MNIST's 70,000 images.

    Their longer side is 20 pixels, in 16 of them 19, and their centre of mass lies between 13.48 and 14.50.
    """
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    if image.max() < 64 or not 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= _DIGIT:
        return False
    moments = cv2.moments(image)
    return all(13.4 <= moments[name] / moments["m00"] <= 14.6 for name in ("m01", "m10"))


def _ring(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """True on the outermost 4 % of a picture, where there is paper."""
    thickness = max(1, round(0.04 * min(shape)))
    ring = np.ones(shape, bool)
    ring[thickness:-thickness, thickness:-thickness] = False
    return ring


def _digit(grey: Grey) -> Ink:
    """The ink of the one digit in a picture without dust, frames and the paper around, some 300 pixels high and wide at most."""
    is_tiny = max(grey.shape) <= _TINY
    ink = find_ink(_enlarged(grey) if is_tiny else scaled(grey, 1 / max(1, round(max(grey.shape) / _SEARCH))))
    mask = (ink > (FAINT if is_tiny else 127)).astype(np.uint8)
    # Widening joins broken strokes and keeps the soft edge of the ink.
    wide = cv2.dilate(mask, _square(1 + 2 * math.ceil(max(ink.shape) / 256)))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(wide, ltype=cv2.CV_16U)
    kept = _digit_labels(statistics, ink.shape)
    is_kept = np.zeros(len(statistics), np.uint8)
    is_kept[kept] = 1
    start, size = statistics[kept, :2], statistics[kept, 2:4]
    (left, top), (right, bottom) = start.min(axis=0), (start + size).max(axis=0)
    around = np.s_[top:bottom, left:right]
    keep = is_kept[labels[around]]
    mask = mask[around] * keep
    box = _box(mask)
    _refuse_other_shapes(mask[box])
    return ink[around][box] * keep[box]


def _enlarged(grey: Grey) -> Grey:
    """A tiny picture with a margin of its paper, in which strokes of one pixel have a shape."""
    # No digit fills the corners, however closely it is cut out.
    middle = (int(grey.min()) + int(grey.max())) / 2
    is_paper = (grey > middle) == (grey[[0, 0, -1, -1], [0, -1, 0, -1]].mean() > middle)
    margin = max(3, max(grey.shape) // 4)
    padded = _padded(grey, margin, float(np.median(grey[is_paper])))
    return scaled(padded, _ENLARGED // max(padded.shape))


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
    """The quantile of whole numbers, of which there are so many of each from 0."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, share * total[-1]))


def _moments(counts: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of whole numbers, of which there are so many of each from 0."""
    values, shares = np.arange(len(counts)), counts / counts.sum()
    mean = float(values @ shares)
    return mean, math.sqrt((values - mean) ** 2 @ shares)


def _light(grey: Grey) -> Grey:
    """The light on the paper below dark ink."""
    border = np.sort(grey[_ring(grey.shape)])
    dark, median, bright = (int(border[int(share * len(border))]) for share in (0.25, 0.5, 0.95))
    # Ink may touch the border.
    if bright - dark <= 0.06 * np.ptp(grey):
        return np.full_like(grey, median)
    # A closing wider than any stroke removes the ink and leaves the light.
    light = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, _square(1 + 2 * (max(grey.shape) // 12)))
    return np.asarray(cv2.blur(light, (5, 5)), np.uint8)


def scaled(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Another size: each pixel is the mean of those it covers, or cubic between its neighbours when the picture grows."""
    height, width = (max(1, int(scale * side + 0.5)) for side in picture.shape)
    if picture.shape == (height, width):
        return picture
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=method), np.uint8)


def _padded(picture: NDArray[np.uint8], margin: int, value: float = 0) -> NDArray[np.uint8]:
    """With a margin of so many pixels of this value on all sides."""
    sides = margin, margin, margin, margin
    return np.asarray(cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=value), np.uint8)


def _square(side: int) -> NDArray[np.uint8]:
    return np.ones((side, side), np.uint8)


def _box(mask: NDArray[np.uint8]) -> tuple[slice, slice]:
    """The rows and columns of the rectangle around the pixels that are not 0."""
    left, top, width, height = cv2.boundingRect(mask)
    return np.s_[top : top + height, left : left + width]


def _refuse_other_shapes(digit: NDArray[np.uint8]) -> None:
    """ValueError for shapes that no digit has; the mask is 1 where there is ink, and 0 elsewhere."""
    height, width = digit.shape
    # The widest of MNIST's 10,000 test digits is 2.5 times as wide as high.
    if width > 3 * height:
        raise ValueError(f"the ink is {width / height:.1f} times as wide as high, which is no digit; draw one digit")
    area = cv2.countNonZero(digit)
    if min(height, width) > 0.6 * max(height, width) and area > 0.9 * digit.size:
        raise ValueError("the ink is a solid blob, which is no digit; draw one digit with a thinner pen")
    length = area / _stroke_width(_padded(digit, 1)) / max(height, width)
    # Among 2,000 of MNIST's test digits the longest is 3.6 times its larger side.
    if length > 12:
        raise ValueError(f"the ink is a tangle {length:.0f} times as long as high, which is no digit; draw one digit")


def _digit_labels(statistics: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The labels of the components that make up the one digit; ValueError for several digits, or when none stands out.

    The columns are OpenCV's: left, top, width, height and area of each component, the paper first.
    """
    if len(statistics) == 2:
        return np.array([1], np.int32)
    components = np.column_stack([statistics, np.arange(len(statistics))])[1:]
    components = components[np.argsort(-components[:, cv2.CC_STAT_AREA], kind="stable")]
    is_inside = (components[:, :2] > 0) & (components[:, :2] + components[:, 2:4] < shape[::-1])
    inside = components[is_inside.all(axis=1)]
    # What reaches the border is a frame, a shadow or the neighbouring line.
    if len(inside) and inside[0, cv2.CC_STAT_AREA] >= 0.2 * components[0, cv2.CC_STAT_AREA]:
        components = inside
    area = components[:, cv2.CC_STAT_AREA]
    if len(area) > 12 and area[0] < 0.5 * area.sum():
        found = f"{len(area)} pieces of ink and no digit among them"
        raise ValueError(f"the picture shows {found}; draw one digit on plain paper")
    start, size = components[:, :2], components[:, 2:4]
    # Between the bounding boxes, negative when they overlap.
    gap = (np.maximum(start, start[0]) - np.minimum(start + size, (start + size)[0])).max(axis=1)
    share = np.where(gap <= round(0.15 * size[0].max()), 0.03, 0.08)
    kept = components[area >= share * area[0]]
    _refuse_several(kept)
    return kept[:, -1]


def _refuse_several(components: NDArray[np.int32]) -> None:
    """ValueError when tall pieces are clearly side by side; a four or a zero drawn in two strokes leaves a smaller gap."""
    left, _, width, height, area, _ = components[np.argsort(components[:, cv2.CC_STAT_LEFT])].T
    tall = (height >= 0.7 * height.max()) & (area >= 0.25 * area.max())
    gaps = left[tall][1:] - np.maximum.accumulate((left + width)[tall])[:-1]
    if (gaps >= 0.15 * height.max()).any():
        raise ValueError(f"the picture shows {tall.sum()} digits side by side; send one digit per picture")


def _even_stroke(digit: Ink) -> Ink:
    """The digit at 120 pixels with a stroke as wide as MNIST's: at 28 x 28 a fine pen would fade and a broad one fill the loops."""
    fine = _padded(scaled(digit, _FINE / max(digit.shape)), 24)
    # A slim one would lose its ends.
    fine = even_stroke(fine, _FINE, may_thin=min(digit.shape) > max(digit.shape) // 4)
    return fine[_box((fine > FAINT).astype(np.uint8))] if fine.max() > FAINT else fine


def even_stroke(ink: Ink, digit_height: float, may_thin: bool = True) -> Ink:
    """The ink of digits of this height in pixels, with strokes that are neither finer nor broader than MNIST's."""
    stroke = _stroke_width(ink) * _DIGIT / digit_height
    if stroke < _THINNEST:
        return np.asarray(cv2.dilate(ink, _window(_THIN - stroke, digit_height)), np.uint8)
    if stroke > _THICKEST and may_thin:
        return np.asarray(cv2.erode(ink, _window(min(stroke - _THICK, 0.4 * stroke), digit_height)), np.uint8)
    return ink


def _window(pixels: float, digit_height: float) -> NDArray[np.uint8]:
    """The window of a dilation or erosion that changes the stroke by about so many of MNIST's pixels."""
    return _square(1 + 2 * max(1, min(11, round(pixels * digit_height / _DIGIT / 2))))


def _stroke_width(ink: Ink) -> float:
    """Pixels: twice the area over the outline; 4 / pi corrects the outline counted along rows and columns."""
    outline = sum(cv2.norm(one, other, cv2.NORM_L1) for one, other in ((ink[1:], ink[:-1]), (ink[:, 1:], ink[:, :-1])))
    return float(2 * cv2.sumElems(ink)[0] / max(outline * np.pi / 4, 1e-6))


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
