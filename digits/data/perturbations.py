"""Perturbations: known changes of images by an amount, which test models and the drift detector and explain a drift."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images

# images warped at once, so that the intermediate arrays stay in the cache
_CHUNK_SIZE = 1000

Origin = Literal["client", "preprocessing", "handwriting"]  # of a change of the images in production


def shift(images: Images, right: float, down: float = 0.0) -> Images:
    """Moved by these numbers of px, fractions interpolated; paper enters at the side."""
    return _affine(images, np.eye(2), np.array([down, right]))


def jitter(images: Images, distance: float) -> Images:
    """Each image moved by this many px, one after the other to the right, left, bottom and top."""
    moved = np.empty_like(images)
    for first, (right, down) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)]):
        moved[first::4] = shift(images[first::4], distance * right, distance * down)
    return moved


def rotate(images: Images, degrees: float) -> Images:
    """Rotated clockwise about the centre; a positive angle makes an upright digit lean right."""
    angle = np.radians(degrees)
    # of (y, x), y pointing down
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return _affine(images, rotation, np.zeros(2))


def quarter_turn(images: Images, turns: float) -> Images:
    """Rotated clockwise by this number of quarter turns, rounded to a whole one."""
    return np.ascontiguousarray(np.rot90(images, -round(turns), axes=(1, 2)))


def slant(images: Images, degrees: float) -> Images:
    """Sheared so that an upright stroke leans right by the angle; rows stay rows."""
    return _affine(images, np.array([[1.0, 0.0], [-np.tan(np.radians(degrees)), 1.0]]), np.zeros(2))


def scale(images: Images, factor: float) -> Images:
    """Enlarged (over 1) or reduced (under 1) about the centre."""
    return _affine(images, np.eye(2) * factor, np.zeros(2))


def dim(images: Images, factor: float) -> Images:
    """Ink multiplied by this factor: 0.6 dims it to 60 %, over 1 brightens it."""
    return _grey(images * np.float32(factor))


def thicken(images: Images, width: float = 1.0) -> Images:
    """Strokes wider by about this many px, half on each side."""
    return _grow(images, width, np.maximum)


def thin(images: Images, width: float = 1.0) -> Images:
    """Strokes narrower by about this many px, half on each side."""
    return _grow(images, width, np.minimum)


def noise(images: Images, sigma: float, seed: int = 0) -> Images:
    """Normal noise with this standard deviation in grey levels, clipped to 0 and 255."""
    random = np.random.default_rng(seed)
    return _grey(images + np.float32(sigma) * random.standard_normal(images.shape, dtype=np.float32))


def blur(images: Images, sigma: float) -> Images:
    """A Gaussian filter with this standard deviation in px; the frame is surrounded by paper."""
    offsets = np.subtract.outer(np.arange(SIZE), np.arange(SIZE))
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2).astype(np.float32)
    # a row in the middle holds the whole kernel
    kernel /= kernel[SIZE // 2].sum()
    return _grey(kernel @ images.astype(np.float32) @ kernel.T)


def grey_paper(images: Images, level: float) -> Images:
    """Paper at this grey level instead of 0, ink still at 255."""
    return _grey(images * np.float32(1 - level / 255) + np.float32(level))


def invert(images: Images, _: float = 1.0) -> Images:
    """Ink and paper exchanged."""
    return 255 - images


def mirror(images: Images, _: float = 1.0) -> Images:
    """Left and right exchanged."""
    return np.ascontiguousarray(images[:, :, ::-1])


def transpose(images: Images, _: float = 1.0) -> Images:
    """Rows and columns exchanged, as by a client that sends its pixels column by column."""
    return np.ascontiguousarray(images.transpose(0, 2, 1))


def describe_shift(right: float, down: float = 0.0) -> str:
    """`shifted 1 px right and 0.5 px up`; a direction with less than 0.2 px beside a larger one is left out."""
    sides = [(right, "right" if right > 0 else "left"), (down, "down" if down > 0 else "up")]
    least = min(0.2, max(abs(right), abs(down)))
    return "shifted " + " and ".join(f"{abs(px):g} px {side}" for px, side in sides if abs(px) >= least)


def _signed(sentence: str, positive: str, negative: str) -> Callable[[float], str]:
    return lambda amount: sentence.format(abs(amount), positive if amount > 0 else negative)


@dataclass(frozen=True)
class Perturbation:
    """A change of images by an amount, and what is known about the amount."""

    apply: Callable[[Images, float], Images]
    range: tuple[float, float]
    default: float
    unit: str
    describe: Callable[[float], str]  # the amount as a part of a sentence
    origin: Origin = "preprocessing"


# An entry is offered by `digits traffic`, tried by the diagnosis of every drift, and injected to test the drift detector.
PERTURBATIONS = {
    "shift": Perturbation(shift, (-27, 27), 2, "px", describe_shift),
    "jitter": Perturbation(jitter, (0, 27), 2, "px", "shifted {:g} px in varying directions".format),
    "rotate": Perturbation(
        rotate, (-180, 180), 15, "degrees", _signed("rotated {:g}° {}", "clockwise", "anticlockwise")
    ),
    "quarter_turn": Perturbation(
        quarter_turn, (1, 3), 1, "quarter turns", "rotated clockwise by {:g} quarter turns".format, "client"
    ),
    "slant": Perturbation(
        slant, (-80, 80), 15, "degrees", _signed("slanted {:g}° to the {}", "right", "left"), "handwriting"
    ),
    "scale": Perturbation(scale, (0.1, 10), 0.8, "times the size", "scaled to {:.0%} of the size".format),
    "dim": Perturbation(dim, (0, 10), 0.6, "times the ink", "ink at {:.0%} of its level".format),
    "thicken": Perturbation(thicken, (0, 27), 1, "px", "strokes {:g} px thicker".format, "handwriting"),
    "thin": Perturbation(thin, (0, 27), 1, "px", "strokes {:g} px thinner".format, "handwriting"),
    "noise": Perturbation(noise, (0, 255), 30, "grey levels", "noise of {:g} grey levels".format),
    "blur": Perturbation(blur, (0.1, 27), 1, "px", "blurred by {:g} px".format, "client"),
    "grey_paper": Perturbation(grey_paper, (0, 255), 40, "grey levels", "paper at grey level {:g}".format),
    "invert": Perturbation(invert, (1, 1), 1, "", "inverted (ink and paper exchanged)".format, "client"),
    "mirror": Perturbation(mirror, (1, 1), 1, "", "mirrored (left and right exchanged)".format, "client"),
    "transpose": Perturbation(transpose, (1, 1), 1, "", "transposed (rows and columns exchanged)".format, "client"),
}


def sample_bilinear(images: Images, rows: NDArray[np.float32], columns: NDArray[np.float32]) -> Images:
    """Bilinear values of the images at fractional pixel coordinates; paper outside.

    The coordinates have the shape (n, 28, 28), or (1, 28, 28) where they are the same for all images.
    """
    margin = 2
    side = SIZE + 2 * margin
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin))).reshape(len(images), -1)
    rows = np.clip(rows + margin, 0, side - 1.001)
    columns = np.clip(columns + margin, 0, side - 1.001)
    top, left = rows.astype(np.int32), columns.astype(np.int32)
    down, right = rows - top, columns - left
    corner = top * side + left

    def neighbours(offset: int) -> NDArray[np.uint8]:
        if len(corner) == 1:
            return padded.take(corner[0] + offset, axis=1)
        first = np.arange(offset, padded.size, side * side, dtype=np.int32)[:, None, None]
        return padded.reshape(-1)[corner + first]

    upper = neighbours(0) * (1 - right) + neighbours(1) * right
    lower = neighbours(side) * (1 - right) + neighbours(side + 1) * right
    return np.rint(upper * (1 - down) + lower * down).astype(np.uint8)


def neighbourhood_extreme(images: Images, extreme: np.ufunc) -> Images:
    """The maximum (dilation) or minimum (erosion) of each pixel's 3 x 3 neighbourhood; paper outside."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    rows = extreme(extreme(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    return extreme(extreme(rows[:, :, :-2], rows[:, :, 1:-1]), rows[:, :, 2:])


def _grey(values: NDArray[np.floating[Any]]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _affine(images: Images, matrix: NDArray[np.float64], offset: NDArray[np.float64]) -> Images:
    """All images through one affine map of (y, x) about the centre."""
    centre = (SIZE - 1) / 2
    target = np.indices((SIZE, SIZE)).reshape(2, -1) - centre
    source = np.linalg.solve(matrix, target - offset[:, None]) + centre
    rows, columns = source.astype(np.float32).reshape(2, 1, SIZE, SIZE)
    chunks = (images[start : start + _CHUNK_SIZE] for start in range(0, len(images), _CHUNK_SIZE))
    return np.concatenate([images[:0], *(sample_bilinear(chunk, rows, columns) for chunk in chunks)])


def _grow(images: Images, width: float, extreme: np.ufunc) -> Images:
    """A blend with the 3 x 3 extreme, which moves both edges of a stroke by 1 px, once per 2 px of width."""
    while width > 0:
        share = np.float32(min(width / 2, 1))
        images = _grey(images * (1 - share) + share * neighbourhood_extreme(images, extreme))
        width -= 2
    return images
