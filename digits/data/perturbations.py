"""Perturbations: known changes of images by an amount, which test models and the drift detector and explain a drift."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images

Apply = TypeVar("Apply", bound=Callable[..., Images])  # from images and an amount
Origin = Literal["client", "preprocessing", "handwriting"]  # of a change of the images in production


@dataclass(frozen=True)
class Perturbation:
    """A change of images by an amount, and what is known about the amount."""

    apply: Callable[..., Images]
    range: tuple[float, float]
    default: float
    unit: str
    sentence: str  # of the size of the amount and its direction
    origin: Origin = "preprocessing"
    directions: tuple[str, str] = ("", "")  # of a positive and of a negative amount

    def describe(self, amount: float) -> str:
        """The amount as a part of a sentence."""
        return self.sentence.format(abs(amount), self.directions[amount <= 0])


# Offered by `digits traffic`, tried by the diagnosis of every drift, and injected to test the drift detector.
PERTURBATIONS: dict[str, Perturbation] = {}


def perturbation(*facts: Any, **more: Any) -> Callable[[Apply], Apply]:
    """Add a function to the table under its name, with these fields of a `Perturbation`."""

    def add(apply: Apply) -> Apply:
        PERTURBATIONS[apply.__name__] = Perturbation(apply, *facts, **more)
        return apply

    return add


@perturbation((-27, 27), 2, "px", "shifted {:g} px {}", directions=("right", "left"))
def shift(images: Images, right: float, down: float = 0.0) -> Images:
    """Fractions of a pixel are interpolated; paper enters at the side."""
    return _affine(images, np.eye(2), np.array([down, right]))


@perturbation((0, 27), 2, "px", "shifted {:g} px in varying directions")
def jitter(images: Images, distance: float) -> Images:
    """One image after the other to the right, left, bottom and top."""
    moved = np.empty_like(images)
    for first, (right, down) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)]):
        moved[first::4] = shift(images[first::4], distance * right, distance * down)
    return moved


@perturbation((-180, 180), 15, "degrees", "rotated {:g}° {}", directions=("clockwise", "anticlockwise"))
def rotate(images: Images, degrees: float) -> Images:
    """About the centre; a positive angle makes an upright digit lean right."""
    angle = np.radians(degrees)
    # Of (y, x), with y pointing down.
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return _affine(images, rotation, np.zeros(2))


@perturbation((1, 3), 1, "quarter turns", "rotated clockwise by {:g} quarter turns", "client")
def quarter_turn(images: Images, turns: float) -> Images:
    return np.ascontiguousarray(np.rot90(images, -round(turns), axes=(1, 2)))


@perturbation((-80, 80), 15, "degrees", "slanted {:g}° to the {}", "handwriting", ("right", "left"))
def slant(images: Images, degrees: float) -> Images:
    """Sheared so that an upright stroke leans by the angle; rows stay rows."""
    return _affine(images, np.array([[1.0, 0.0], [-np.tan(np.radians(degrees)), 1.0]]), np.zeros(2))


@perturbation((0.1, 10), 0.8, "times the size", "scaled to {:.0%} of the size")
def scale(images: Images, factor: float) -> Images:
    return _affine(images, np.eye(2) * factor, np.zeros(2))


@perturbation((0, 10), 0.6, "times the ink", "ink at {:.0%} of its level")
def dim(images: Images, factor: float) -> Images:
    return _grey(images * np.float32(factor))


@perturbation((0, 27), 1, "px", "strokes {:g} px thicker", "handwriting")
def thicken(images: Images, width: float = 1.0, extreme: np.ufunc = np.maximum) -> Images:
    """A blend with the 3 x 3 extreme, which moves both edges of a stroke by 1 px, once per 2 px of width."""
    while width > 0:
        share = np.float32(min(width / 2, 1))
        images = _grey(images * (1 - share) + share * neighbourhood_extreme(images, extreme))
        width -= 2
    return images


@perturbation((0, 27), 1, "px", "strokes {:g} px thinner", "handwriting")
def thin(images: Images, width: float = 1.0) -> Images:
    return thicken(images, width, np.minimum)


@perturbation((0, 255), 30, "grey levels", "noise of {:g} grey levels")
def noise(images: Images, sigma: float) -> Images:
    """Normal, with this standard deviation."""
    random = np.random.default_rng(0)
    return _grey(images + np.float32(sigma) * random.standard_normal(images.shape, dtype=np.float32))


@perturbation((0.1, 27), 1, "px", "blurred by {:g} px", "client")
def blur(images: Images, sigma: float) -> Images:
    """A Gaussian filter with this standard deviation; the frame is surrounded by paper."""
    offsets = np.subtract.outer(np.arange(SIZE), np.arange(SIZE))
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2).astype(np.float32)
    # A row in the middle holds the whole kernel.
    kernel /= kernel[SIZE // 2].sum()
    return _grey(kernel @ images.astype(np.float32) @ kernel.T)


@perturbation((0, 255), 40, "grey levels", "paper at grey level {:g}")
def grey_paper(images: Images, level: float) -> Images:
    return _grey(images * np.float32(1 - level / 255) + np.float32(level))


@perturbation((1, 1), 1, "", "inverted (ink and paper exchanged)", "client")
def invert(images: Images, _: float = 1.0) -> Images:
    return 255 - images


@perturbation((1, 1), 1, "", "mirrored (left and right exchanged)", "client")
def mirror(images: Images, _: float = 1.0) -> Images:
    return np.ascontiguousarray(images[:, :, ::-1])


@perturbation((1, 1), 1, "", "transposed (rows and columns exchanged)", "client")
def transpose(images: Images, _: float = 1.0) -> Images:
    """As by a client that sends its pixels column by column."""
    return np.ascontiguousarray(images.transpose(0, 2, 1))


def describe_shift(right: float, down: float = 0.0) -> str:
    """`shifted 1 px right and 0.5 px up`; a direction with less than 0.2 px beside a larger one is left out."""
    sides = [(right, "right" if right > 0 else "left"), (down, "down" if down > 0 else "up")]
    least = min(0.2, max(abs(right), abs(down)))
    return "shifted " + " and ".join(f"{abs(px):g} px {side}" for px, side in sides if abs(px) >= least)


def sample_bilinear(images: Images, rows: NDArray[np.float32], columns: NDArray[np.float32]) -> Images:
    """Bilinear values of the images at fractional pixel coordinates; paper outside.

    The coordinates have the shape (n, 28, 28), or (1, 28, 28) where they are the same for all images.
    """
    margin = 2
    side = SIZE + 2 * margin
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin))).reshape(-1, side * side)
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
    return sample_bilinear(images, rows, columns)
