"""The changes that images go through on their way to us, with an amount: they test the detector and explain what it finds."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images, Labels

Change = Callable[[Images, float], Images]

# images warped at once, so that the intermediate arrays stay in the cache
_CHUNK = 1000


def shift(images: Images, right: float, down: float = 0.0) -> Images:
    """Moved by so many px, fractions interpolated; paper comes in at the side."""
    return _affine(images, np.eye(2), np.array([down, right]))


def rotate(images: Images, degrees: float) -> Images:
    """Turned clockwise about the middle; positive makes an upright digit lean right."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # of (y, x), y pointing down
    return _affine(images, turn, np.zeros(2))


def slant(images: Images, degrees: float) -> Images:
    """Sheared so that an upright stroke leans right by the angle; rows stay rows."""
    return _affine(images, np.array([[1.0, 0.0], [-np.tan(np.radians(degrees)), 1.0]]), np.zeros(2))


def scale(images: Images, factor: float) -> Images:
    """Larger (over 1) or smaller (under 1) about the middle."""
    return _affine(images, np.eye(2) * factor, np.zeros(2))


def dim(images: Images, factor: float) -> Images:
    """Ink at this factor of its level: 0.6 dims to 60 %, over 1 brightens."""
    return _grey(images * np.float32(factor))


def thicken(images: Images, width: float = 1.0) -> Images:
    """Strokes wider by about this many px, half on each side."""
    return _grow(images, width, np.maximum)


def thin(images: Images, width: float = 1.0) -> Images:
    """Strokes narrower by about this many px, half on each side."""
    return _grow(images, width, np.minimum)


def noise(images: Images, sigma: float, seed: int = 0) -> Images:
    """Normal noise of this standard deviation in grey levels, cut off at paper and ink."""
    random = np.random.default_rng(seed)
    return _grey(images + np.float32(sigma) * random.standard_normal(images.shape, dtype=np.float32))


def blur(images: Images, sigma: float) -> Images:
    """Out of focus: a Gaussian of this standard deviation in px."""
    offsets = np.subtract.outer(np.arange(SIZE), np.arange(SIZE))
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2).astype(np.float32)
    kernel /= kernel[SIZE // 2].sum()  # a row in the middle has the whole kernel; beyond the frame is paper
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
    """Rows and columns exchanged, as a client does that sends its pixels column by column."""
    return np.ascontiguousarray(images.transpose(0, 2, 1))


def more_of(labels: Labels, digit: int, factor: float, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Indices of a sample with replacement in which one digit's share is this factor of what it is in the labels."""
    share = np.mean(labels == digit)
    if not 0 < share * factor < 1:
        raise ValueError(f"cannot make digit {digit} {factor} times its share of {share:.3f}")
    weights = np.where(labels == digit, factor, (1 - share * factor) / (1 - share))
    return random.choice(len(labels), count, p=weights / weights.sum())


def weights_like(digits: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each of `digits` must count so that every digit has the share that it has in `wanted`; all 1 if none does."""
    shares, target = (np.bincount(values.astype(int), minlength=10) / len(values) for values in (digits, wanted))
    weights = np.divide(target, shares, out=np.zeros(10), where=shares > 0)[digits.astype(int)]
    return weights if weights.any() else np.ones(len(digits))


def _grey(values: NDArray[np.floating[Any]]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


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


def _affine(images: Images, matrix: NDArray[np.float64], offset: NDArray[np.float64]) -> Images:
    """All images through one affine map of (y, x) about the centre."""
    centre = (SIZE - 1) / 2
    target = np.indices((SIZE, SIZE)).reshape(2, -1) - centre
    source = np.linalg.solve(matrix, target - offset[:, None]) + centre
    rows, columns = source.astype(np.float32).reshape(2, 1, SIZE, SIZE)
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    return np.concatenate([sample_bilinear(chunk, rows, columns) for chunk in chunks]) if chunks else images.copy()


def _grow(images: Images, width: float, extreme: np.ufunc) -> Images:
    """A blend with the 3 x 3 extreme, which moves both edges of a stroke by 1 px, once per 2 px of width."""
    while width > 0:
        share = np.float32(min(width / 2, 1))
        images = _grey(images * (1 - share) + share * neighbourhood_extreme(images, extreme))
        width -= 2
    return images
