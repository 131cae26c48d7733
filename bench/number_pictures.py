"""Pictures of numbers for `bench.handwriting`: digits of a data set written side by side on plain, ruled and photographed paper.

Every picture is drawn from labelled 28 x 28 digits that the model was not trained on, so the right answer is known exactly.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from digits.images import Split

Ink = NDArray[np.float32]  # 0 = paper, 1 = ink
Random = np.random.Generator

# Rows and columns of a digit in MNIST.
MNIST_PIXELS = 20
MAX_DIGITS = 8
# Red, green and blue of ball pens and pencils.
INKS = ((20, 20, 25), (25, 40, 120), (60, 60, 65), (30, 30, 90), (90, 20, 25))
RULES = ((150, 180, 215), (190, 190, 190), (215, 150, 150), (120, 140, 180))


@dataclass(frozen=True)
class NumberPicture:
    """A picture (PNG or JPEG) and the numbers in it, from top to bottom."""

    content: bytes
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Writing:
    """Lines of digits as ink on a page, before they have paper and colour."""

    ink: Ink
    lines: tuple[str, ...]
    height: float  # of a digit in pixels
    baselines: tuple[float, ...]
    boxes: tuple[tuple[float, float, float, float], ...]  # left, top, right, bottom of each digit


def plain(digits: Split, random: Random) -> NumberPicture:
    """One line on plain paper."""
    return _scanned(write(digits, random), random)


def ruled(digits: Split, random: Random) -> NumberPicture:
    """One line on ruled paper, squared paper or in the boxes of a form."""
    writing = write(digits, random, slope_degrees=2)
    return _scanned(writing, random, rules=RULED[random.integers(len(RULED))])


def photographed(digits: Split, random: Random) -> NumberPicture:
    """One line on a sheet that was photographed: perspective, uneven light, blur, noise and JPEG; a third of the sheets are ruled."""
    writing = write(digits, random, slope_degrees=6)
    rules = RULED[random.integers(2)] if random.random() < 1 / 3 else None
    page = _page(writing, random, rules)
    return NumberPicture(_photograph(page, random), writing.lines)


def photographed_digit(digits: Split, random: Random) -> NumberPicture:
    """One digit on a plain sheet that was photographed."""
    writing = write(digits, random, slope_degrees=6, max_digits=1)
    return NumberPicture(_photograph(_page(writing, random, None), random), writing.lines)


def several_lines(digits: Split, random: Random) -> NumberPicture:
    """Two to five lines on plain paper."""
    return _scanned(write(digits, random, n_lines=int(random.integers(2, 6))), random)


def touching(digits: Split, random: Random) -> NumberPicture:
    """One line on plain paper; half of the neighbours touch, and at least two of them."""
    return _scanned(write(digits, random, touch=0.5), random)


KINDS: dict[str, Callable[[Split, Random], NumberPicture]] = {
    "plain": plain,
    "ruled": ruled,
    "photographed": photographed,
    "several lines": several_lines,
    "touching": touching,
}


def write(
    digits: Split,
    random: Random,
    n_lines: int = 1,
    touch: float = 0.0,
    slope_degrees: float = 10.0,
    max_digits: int = MAX_DIGITS,
) -> Writing:
    """Lines of at most so many digits, all lines with the same slope; `touch` is the share of neighbours that touch."""
    height = float(random.uniform(32, 90))
    written = [_line(digits, random, height, touch, max_digits) for _ in range(n_lines)]
    pitch = height * random.uniform(1.7, 2.5)
    slope = np.tan(np.radians(random.uniform(-slope_degrees, slope_degrees)))
    widest = max(ink.shape[1] for ink, _, _ in written)
    margin = 0.6 * height
    rise = abs(slope) * widest
    shape = (int(2 * margin + pitch * (n_lines - 1) + 1.6 * height + rise), int(2 * margin + widest))
    page, boxes, baselines = np.zeros(shape, np.float32), [], []
    for number, (ink, spans, _) in enumerate(written):
        left = margin + random.uniform(0, max(1, min(widest - ink.shape[1], height)))
        top = margin + pitch * number + (rise if slope < 0 else 0)
        baselines.append(top + 1.3 * height)
        for glyph, (across, down) in spans:
            place = top + down + slope * across, left + across
            _stamp(page, glyph, place)
            boxes.append((place[1], place[0], place[1] + glyph.shape[1], place[0] + glyph.shape[0]))
    return Writing(page, tuple(text for _, _, text in written), height, tuple(baselines), tuple(boxes))


def _line(
    digits: Split, random: Random, height: float, touch: float, max_digits: int
) -> tuple[Ink, list[tuple[Ink, tuple[float, float]]], str]:
    """The ink of a level line, its digits with their places across and down, and its text."""
    n = int(random.integers(2 if touch else 1, max_digits + 1))
    chosen = random.integers(len(digits), size=n)
    touches = random.random(n) < touch
    if touch:
        touches[1 + random.integers(n - 1)] = True
    pen = random.uniform(0.4, 0.6)
    spacing = random.uniform(0.18, 0.5)
    line = np.zeros((int(2.2 * height), int(1.9 * height * n + height)), np.float32)
    spans: list[tuple[Ink, tuple[float, float]]] = []
    for position, index in enumerate(chosen):
        size = height * random.uniform(0.88, 1.1)
        glyph = enlarge(digits.images[index], size / MNIST_PIXELS, pen)
        # MNIST has no baseline: its digits are as high as wide ones allow, and stand on the line here.
        down = 1.3 * height - glyph.shape[0] + height * random.uniform(-0.07, 0.07)
        right = max((across + other.shape[1] for other, (across, _) in spans), default=0.0)
        across = right + height * spacing * random.uniform(0.7, 1.3)
        if position and touches[position]:
            across = _touching_place(line, glyph, down, right, random.uniform(0.02, 0.08) * height)
        _stamp(line, glyph, (down, across))
        spans.append((glyph, (across, down)))
    right = max(across + glyph.shape[1] for glyph, (across, _) in spans)
    return line[:, : int(right) + 1], spans, "".join(str(digits.labels[index]) for index in chosen)


def enlarge(image: NDArray[np.uint8], factor: float, threshold: float = 0.5) -> Ink:
    """The ink of a digit, enlarged with a sharp edge and without the paper around."""
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    digit = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
    large = ndimage.zoom(np.pad(digit, 2), factor, order=3)
    large = ndimage.gaussian_filter(large, 0.35 * factor)
    sharp = np.clip((large - 0.8 * threshold) * (2.0 * factor) + 0.5, 0, 1)
    rows, columns = (np.flatnonzero((sharp > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        return sharp.astype(np.float32)
    return sharp[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def _touching_place(line: Ink, glyph: Ink, down: float, right: float, overlap: float) -> float:
    """Where a digit goes so that its ink touches that of the line and overlaps it by so many pixels."""
    top = int(down)
    band = line[top : top + glyph.shape[0]] > 0.5
    ink = glyph[: len(band)] > 0.5
    ends = np.where(band.any(1), band.shape[1] - 1 - band[:, ::-1].argmax(1), -(10**6))
    starts = np.where(ink.any(1), ink.argmax(1), 10**6)
    return max(0.0, float((ends - starts).max()) + 1 - overlap) if (ends - starts).max() > 0 else right


def _stamp(page: Ink, glyph: Ink, place: tuple[float, float]) -> None:
    """Write a digit on the page at a row and column; where ink meets ink, the darker stays."""
    top, left = (max(0, round(value)) for value in place)
    area = page[top : top + glyph.shape[0], left : left + glyph.shape[1]]
    np.maximum(area, glyph[: area.shape[0], : area.shape[1]], out=area)


RULED = ("lines", "squares", "boxes")


def _page(writing: Writing, random: Random, rules: str | None) -> NDArray[np.float32]:
    """The page in colour, (height, width, 3), 0 to 255."""
    paper = np.array([random.uniform(225, 255)] * 3) - [0, random.uniform(0, 6), random.uniform(0, 18)]
    page = np.broadcast_to(paper, (*writing.ink.shape, 3)).astype(np.float32).copy()
    if rules:
        page = _rule(page, writing, random, rules)
    colour = np.array(INKS[random.integers(len(INKS))]) + random.uniform(0, 45)
    ink = writing.ink[..., None] * np.float32(random.uniform(0.85, 1))
    return (page * (1 - ink) + colour.astype(np.float32) * ink).astype(np.float32)


def _rule(page: NDArray[np.float32], writing: Writing, random: Random, rules: str) -> NDArray[np.float32]:
    sheet = Image.fromarray(page.astype(np.uint8))
    draw, (height, width) = ImageDraw.Draw(sheet), page.shape[:2]
    colour = RULES[random.integers(len(RULES))]
    pen = max(1, round(writing.height * random.uniform(0.015, 0.045)))
    if rules == "boxes":
        # Wider than the digits and alike, as on a form.
        top = min(box[1] for box in writing.boxes) - writing.height * random.uniform(0.12, 0.25)
        bottom = max(box[3] for box in writing.boxes) + writing.height * random.uniform(0.12, 0.25)
        ordered = sorted(writing.boxes)
        edges = [ordered[0][0] - 0.12 * writing.height]
        edges += [(one[2] + other[0]) / 2 for one, other in pairwise(ordered)]
        edges.append(max(box[2] for box in ordered) + 0.12 * writing.height)
        dark = tuple(int(value * random.uniform(0.4, 1)) for value in colour)
        draw.rectangle((edges[0], top, edges[-1], bottom), outline=dark, width=pen)
        for edge in edges[1:-1]:
            draw.line((edge, top, edge, bottom), fill=dark, width=pen)
        return np.asarray(sheet, np.float32)
    step = writing.height * (random.uniform(1.25, 2) if rules == "lines" else random.uniform(0.5, 1.1))
    start = writing.baselines[0] + writing.height * random.uniform(-0.03, 0.08)
    for row in np.arange(start % step, height, step):
        draw.line((0, row, width, row), fill=colour, width=pen)
    if rules == "squares":
        for column in np.arange(random.uniform(0, step), width, step):
            draw.line((column, 0, column, height), fill=colour, width=pen)
    return np.asarray(sheet, np.float32)


def _scanned(writing: Writing, random: Random, rules: str | None = None) -> NumberPicture:
    """A picture as a scanner makes it: even light, little blur and noise."""
    page = _page(writing, random, rules)
    page = ndimage.gaussian_filter(page, (random.uniform(0.3, 1.0),) * 2 + (0,))
    page += random.normal(0, random.uniform(0, 4), page.shape)
    picture = Image.fromarray(page.clip(0, 255).round().astype(np.uint8))
    if random.random() < 0.5:
        return NumberPicture(_encode(picture, "PNG"), writing.lines)
    return NumberPicture(_encode(picture, "JPEG", quality=int(random.integers(70, 96))), writing.lines)


def _photograph(page: NDArray[np.float32], random: Random) -> bytes:
    """The page as a JPEG of a phone: seen at an angle, unevenly lit, with a shadow, blurred and noisy."""
    sheet = Image.fromarray(page.astype(np.uint8))
    scale = random.uniform(1.0, 1.8)
    width, height = (int(side * scale) for side in sheet.size)
    corners = np.array([(0, 0), (0, sheet.height), (sheet.width, sheet.height), (sheet.width, 0)], float)
    # Inwards, so that the sheet fills the picture.
    bend = random.uniform(0, 0.05, (4, 2)) * min(sheet.size) * [[1, 1], [1, -1], [-1, -1], [-1, 1]]
    corners += bend
    sheet = sheet.transform((width, height), Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC)
    photo = np.asarray(sheet, np.float32)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    angle = random.uniform(0, 2 * np.pi)
    light = 1 - random.uniform(0.1, 0.35) * (1 + np.cos(angle) * x + np.sin(angle) * y) / 2
    if random.random() < 0.5:
        # The soft shadow of a hand or the phone.
        angle, offset = random.uniform(0, 2 * np.pi), random.uniform(-0.5, 0.9)
        edge = np.cos(angle) * x + np.sin(angle) * y - offset
        light *= 1 - random.uniform(0.1, 0.4) / (1 + np.exp(-edge / random.uniform(0.05, 0.3)))
    photo = photo * light[..., None] * np.array([1, random.uniform(0.94, 1), random.uniform(0.85, 1)], np.float32)
    photo = ndimage.gaussian_filter(photo, (random.uniform(0.5, 1.6),) * 2 + (0,))
    photo += random.normal(0, random.uniform(2, 7), photo.shape)
    return _encode(Image.fromarray(photo.clip(0, 255).astype(np.uint8)), "JPEG", quality=int(random.integers(60, 93)))


def _encode(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
