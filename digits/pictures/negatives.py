"""Images that show no digit: parts of digits, neighbours pushed together, letters, signs, scribbles and textures.

A network that learns them as an eleventh class knows where digits end: outlier exposure (Hendrycks, Mazeika and Dietterich 2019,
https://arxiv.org/abs/1812.04606).
"""

import string
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from digits.images import SIZE, Images
from digits.pictures.ink import FAINT, Ink
from digits.pictures.mnist_frame import to_mnist

Random = np.random.Generator
Kind = Callable[[Random], Iterator[Ink]]

# Printed or written, these may be a digit.
DIGIT_LIKE = frozenset("OoQDlIiSsZzBbgq")
LETTERS = "".join(letter for letter in string.ascii_letters if letter not in DIGIT_LIKE)
SIGNS = "#&@%?!+=*<>$"
FONT_SIZE = 80
SHARES = (0.1, 0.2, 0.45, 0.2, 0.05)  # of parts, pairs, letters, scribbles and textures
# DejaVu's styles are for training; STIX, Computer Modern and Pillow's own font are for evaluation.
TRAINING_FONTS, EVALUATION_FONTS = "DejaVuS*[!y].ttf", ("STIXGeneral*.ttf", "cmr10.ttf", "cmss10.ttf", "cmmi10.ttf")
MIN_PART, MAX_PART = 0.15, 0.7  # of a digit's ink: less is a speck, more may still be read
MIN_WIDTH = 0.5  # of a part's height: what is narrower may be a one

# Single strokes, as of a plotter's pen.
_HERSHEY = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


def negatives(digits: Images, count: int, random: Random) -> Images:
    """`count` images (n, 28, 28) that show no digit, nearly half of them letters and signs; parts and pairs are made of these digits."""
    kinds = (parts(digits, random), pairs(digits, random), letters(random), scribbles(random), textures(random))
    chosen = random.choice(len(kinds), count, p=SHARES)
    return np.array([to_mnist(next(kinds[kind])) for kind in chosen.tolist()], np.uint8).reshape(-1, SIZE, SIZE)


def printed(letter: str, font: ImageFont.FreeTypeFont) -> Ink:
    """The letter on a page of 160 x 160 pixels."""
    page = Image.new("L", (2 * FONT_SIZE, 2 * FONT_SIZE))
    ImageDraw.Draw(page).text((FONT_SIZE // 2, FONT_SIZE // 3), letter, fill=255, font=font)
    return np.asarray(page)


def evaluation_fonts() -> list[ImageFont.FreeTypeFont]:
    """Fonts of which `negatives` has no letters."""
    own = ImageFont.load_default(FONT_SIZE)
    assert isinstance(own, ImageFont.FreeTypeFont)
    return [own, *(font for pattern in EVALUATION_FONTS for font in _fonts(pattern))]


def parts(digits: Images, random: Random) -> Iterator[Ink]:
    """Digits of which a slanted cut left one side with 15 to 70 % of the ink, not as slim as a one."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    while True:
        digit = digits[random.integers(len(digits))]
        along, across = (rows, columns) if random.random() < 0.75 else (columns, rows)
        beyond = across + random.uniform(-0.4, 0.4) * (along - 14) > 14 + random.uniform(-5, 5)
        part = np.where(beyond == (random.random() < 0.5), digit, 0).astype(np.uint8)
        share = part.sum(dtype=float) / max(1, digit.sum(dtype=float))
        _, _, width, height = cv2.boundingRect(part)
        if MIN_PART < share < MAX_PART and width >= MIN_WIDTH * height:
            yield part


def pairs(digits: Images, random: Random) -> Iterator[Ink]:
    """Two digits that nearly touch or overlap; of two fifths, only the beginning of the second, with 40 % of its ink at least."""
    while True:
        first, second = (digits[random.integers(len(digits))] for _ in range(2))
        if random.random() < 0.4:
            second = _beginning(second, random.uniform(0.4, 0.8))
        columns = [np.flatnonzero((digit > FAINT).any(axis=0)) for digit in (first, second)]
        if not all(map(len, columns)):
            continue
        page = np.zeros((SIZE + 8, 3 * SIZE), np.uint8)
        page[4 : 4 + SIZE, 4 : 4 + SIZE] = first
        # between the last ink of the first digit and the first ink of the second
        left = 4 + int(columns[0][-1]) + int(random.integers(-2, 5)) - int(columns[1][0])
        top = int(random.integers(1, 8))
        area = page[top : top + SIZE, left : left + SIZE]
        np.maximum(area, second, out=area)
        yield page


def _beginning(digit: Ink, share: float) -> Ink:
    """The left of a digit, up to the column with which this share of its ink is reached."""
    mass = digit.sum(axis=0, dtype=float).cumsum()
    end = int(np.searchsorted(mass, share * mass[-1])) + 1
    return np.where(np.arange(SIZE) < end, digit, 0).astype(np.uint8)


def letters(random: Random) -> Iterator[Ink]:
    """Letters and signs, printed or drawn in single strokes, turned and slanted, of several widths."""
    fonts = _fonts(TRAINING_FONTS)
    while True:
        letter = (LETTERS + SIGNS)[random.integers(len(LETTERS + SIGNS))]
        if random.random() < 0.5:
            ink = printed(letter, fonts[random.integers(len(fonts))])
        else:
            ink = np.zeros((2 * FONT_SIZE, 2 * FONT_SIZE), np.uint8)
            face, size = _HERSHEY[random.integers(len(_HERSHEY))], random.uniform(2, 3.5)
            cv2.putText(ink, letter, (50, 110), face, size, 255, int(random.integers(4, 14)), cv2.LINE_AA)
        yield _written(ink, random)


def scribbles(random: Random) -> Iterator[Ink]:
    """A smooth curve through random points."""
    from scipy.interpolate import CubicSpline  # serving has no SciPy

    while True:
        count = int(random.integers(4, 12))
        walks = random.random() < 0.5
        points = random.normal(0, 22, (count, 2)).cumsum(0) if walks else random.uniform(10, 150, (count, 2))
        curve = CubicSpline(np.arange(count), points)(np.linspace(0, count - 1, 12 * count))
        curve = (curve - curve.min(axis=0) + 20).astype(np.int32)
        width, height = (int(side) + 30 for side in curve.max(axis=0))
        if max(width, height) > 900:
            continue
        ink = np.zeros((height, width), np.uint8)
        thickness = int(random.integers(3, max(4, max(width, height) // 12)))
        cv2.polylines(ink, [curve], bool(random.random() < 0.2), 255, thickness, cv2.LINE_AA)
        yield ink


def textures(random: Random) -> Iterator[Ink]:
    """Clouds, bundles of lines, ellipses and rectangles."""
    kinds: tuple[Callable[[Random], Ink], ...] = (_clouds, _lines, _ellipses, _rectangle)
    while True:
        yield kinds[random.integers(len(kinds))](random)


def _clouds(random: Random) -> Ink:
    noise = cv2.GaussianBlur(random.random((SIZE, SIZE)), (0, 0), random.uniform(0.5, 3))
    levels = (noise - noise.min()) / np.ptp(noise) * 255
    return np.where(levels > random.uniform(60, 160), levels, 0).astype(np.uint8)


def _lines(random: Random) -> Ink:
    ink = np.zeros((100, 100), np.uint8)
    for _ in range(random.integers(2, 9)):
        cv2.line(ink, _point(random, 0, 100), _point(random, 0, 100), 255, int(random.integers(2, 12)), cv2.LINE_AA)
    return ink


def _ellipses(random: Random) -> Ink:
    ink = np.zeros((100, 100), np.uint8)
    for _ in range(random.integers(1, 4)):
        centre, axes, turn = _point(random, 20, 80), _point(random, 5, 40), int(random.integers(180))
        cv2.ellipse(ink, centre, axes, turn, 0, 360, 255, _outline(random))
    return ink


def _rectangle(random: Random) -> Ink:
    ink = np.zeros((100, 100), np.uint8)
    (left, top), (width, height) = _point(random, 0, 60), _point(random, 15, 60)
    cv2.rectangle(ink, (left, top), (left + width, top + height), 255, _outline(random))
    return ink


def _point(random: Random, low: int, high: int) -> tuple[int, int]:
    x, y = random.integers(low, high, 2)
    return int(x), int(y)


def _outline(random: Random) -> int:
    """The thickness of an outline; half of the shapes are filled."""
    return cv2.FILLED if random.random() < 0.5 else int(random.integers(2, 10))


def _written(ink: Ink, random: Random) -> Ink:
    """Turned, slanted and thickened at random."""
    height, width = ink.shape
    change = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-12, 12), random.uniform(0.85, 1.1))
    change[0, 1] += random.uniform(-0.25, 0.25)
    turned = cv2.warpAffine(ink, change, (width, height))
    side = int(random.integers(1, 6)) if random.random() < 0.5 else 1
    return np.asarray(cv2.dilate(turned, np.ones((side, side), np.uint8)), np.uint8)


@cache
def _fonts(pattern: str) -> list[ImageFont.FreeTypeFont]:
    """The fonts that Matplotlib brings along whose file names match."""
    import matplotlib  # serving has none

    files = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob(pattern))
    return [ImageFont.truetype(file, FONT_SIZE) for file in files]
