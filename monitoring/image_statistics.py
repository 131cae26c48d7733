"""Image statistics: what an incoming image looks like, in a few numbers with a unit, so that a change can be named."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images

Values = NDArray[np.float64]  # (n,), one finite number per image
Columns = dict[str, Values]

UNITS = {
    "ink": "share of the picture",
    "centre_x": "px right of the middle",
    "centre_y": "px below the middle",
    "spread_x": "px",
    "spread_y": "px",
    "slant": "degrees, leaning right is positive",
    "stroke_width": "px",
    "stroke_level": "grey levels",
    "contrast": "grey levels",
    "border": "grey levels",
    "edges": "grey levels per px",
    "edge_width": "px",
    "noise": "grey levels",
}

GRID = 4
BLOCKS = [f"block_{row}_{column}" for row in range(1, GRID + 1) for column in range(1, GRID + 1)]

_CHUNK = 512  # images at once as float, 1.6 MB, so that a pass stays in the cache and memory is bounded
_BORDER = 2  # px; MNIST keeps its digits inside the middle 20 x 20, so the frame is all but empty


def _weights() -> NDArray[np.float32]:
    """The sums every linear statistic is made of, shape (784, 7 + 16): 1, x, y, x², y², xy, border, the blocks."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    border = np.ones((SIZE, SIZE))
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = 0
    side = SIZE // GRID
    blocks = np.kron(np.eye(GRID * GRID).reshape(-1, GRID, GRID), np.ones((side, side)) / side**2)
    linear = [np.ones_like(x), x, y, x * x, y * y, x * y, border / border.sum()]
    return np.concatenate([np.stack(linear), blocks]).reshape(-1, SIZE * SIZE).T.astype(np.float32)


def measure(images: Images) -> Columns:
    """Thirteen statistics of every image, in the units of `UNITS`, and its 4x4 block means in grey levels.

    `ink` is the mean pixel over 255. `centre` and `spread` are the first two moments of the ink, `slant` the angle of the shear
    that would set the digit upright (Teague, J. Opt. Soc. Am. 70, 1980). `stroke_width` is twice the inked area over
    the length of its outline (the total variation), `stroke_level` the mean grey of the ink, `contrast` the
    standard deviation of the pixels, `border` the mean of the outer two pixels, `edges` the mean gradient, `edge_width` the
    distance in which paper becomes ink, and `noise` the median response to the kernel of Immerkaer (CVIU 64, 1996), as the
    standard deviation of the noise. All are finite: 0 where an image has no ink or no edge to measure.
    """
    weights = _weights()
    parts = [_measure(images[start : start + _CHUNK], weights) for start in range(0, len(images), _CHUNK)]
    table = np.concatenate(parts).astype(np.float64)
    return dict(zip([*UNITS, *BLOCKS], np.ascontiguousarray(table.T), strict=True))


def _measure(images: Images, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """One chunk, shape (n, 13 + 16)."""
    pixels = images.astype(np.float32)
    flat = pixels.reshape(len(images), -1)
    sums = flat @ weights
    total, x, y, xx, yy, xy = (_ratio(sums[:, i], sums[:, 0]) if i else sums[:, 0] for i in range(6))
    var_x, var_y = np.maximum(xx - x * x, 0), np.maximum(yy - y * y, 0)
    energy = np.einsum("ij,ij->i", flat, flat)
    mean = total / SIZE**2
    level = _ratio(energy, total)
    gradient, squares = _gradient(pixels)
    statistics = [
        mean / 255,
        x,
        y,
        np.sqrt(var_x),
        np.sqrt(var_y),
        np.degrees(np.arctan(_ratio(x * y - xy, var_y))),
        _ratio(2 * total, gradient),
        level,
        np.sqrt(np.maximum(energy / SIZE**2 - mean * mean, 0)),
        sums[:, 6],
        gradient / (SIZE - 1) ** 2,
        _ratio(gradient * level, squares),
        _noise(pixels),
    ]
    return np.concatenate([np.stack(statistics, axis=1), sums[:, 7:]], axis=1)


def _ratio(above: NDArray[np.float32], below: NDArray[np.float32]) -> NDArray[np.float32]:
    """The quotient, 0 where there is nothing to divide by."""
    return np.divide(
        above, below, out=np.zeros_like(below), where=below > 1e-3
    )  # below that a variance is only rounding


def _gradient(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sum of the gradient's length and of its square over each image."""
    across = pixels[:, :-1, 1:] - pixels[:, :-1, :-1]
    down = pixels[:, 1:, :-1] - pixels[:, :-1, :-1]
    squares = (across * across + down * down).reshape(len(pixels), -1)
    return np.sqrt(squares).sum(axis=1), squares.sum(axis=1)


def _noise(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise of each image in grey levels; the median does not see strokes, which cover less than half of a digit.

    Every fourth response is enough for it, and a quarter of the time.
    """
    across = pixels[:, :, 2::2] - 2 * pixels[:, :, 1:-1:2] + pixels[:, :, :-2:2]
    both = np.abs(across[:, 2::2] - 2 * across[:, 1:-1:2] + across[:, :-2:2]).reshape(len(pixels), -1)
    middle = both.shape[1] // 2
    # 6 is the norm of the kernel, 0.6745 the median of |x| for a standard normal x
    return np.partition(both, middle, axis=1)[:, middle] * np.float32(1 / (6 * 0.6745))


def distance(before: Values, now: Values, weights: Values | None = None) -> float:
    """Two-sample Kolmogorov-Smirnov distance of a column: the largest difference of the two distribution functions, 0 to 1.

    `weights` (not negative, not all 0) says how much each value of `before` counts.
    """
    order = np.argsort(before, kind="stable")
    first, second = before[order], np.sort(now)
    counted = np.cumsum(np.ones(len(first)) if weights is None else weights[order])
    cumulative = np.concatenate([[0.0], counted / counted[-1]])
    values = np.concatenate([first, second])
    then = cumulative[np.searchsorted(first, values, "right")]
    return float(np.abs(then - np.searchsorted(second, values, "right") / len(second)).max())


@dataclass(frozen=True)
class Embedding:
    """Principal axes of the reference images: the directions in which digits differ most."""

    mean: NDArray[np.float32]  # (784,)
    axes: NDArray[np.float32]  # (784, k), unit length

    def project(self, images: Images) -> Columns:
        """Where each image lies along the axes, in grey levels: `axis_1` to `axis_k`."""
        chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
        parts = [(chunk.reshape(len(chunk), -1) - self.mean) @ self.axes for chunk in chunks]
        table = np.concatenate(parts).astype(np.float64)
        return {f"axis_{i}": np.ascontiguousarray(values) for i, values in enumerate(table.T, start=1)}


def embed(images: Images, axes: int = 6) -> Embedding:
    """The principal components of these images' pixels; each axis points where its largest pixel is positive."""
    from scipy.linalg import eigh  # 0.3 s to import

    flat = images.reshape(len(images), -1).astype(np.float32)
    mean = flat.mean(axis=0)
    flat -= mean
    size = flat.shape[1]
    _, vectors = eigh(flat.T @ flat, subset_by_index=[size - axes, size - 1])
    leading = vectors[:, ::-1]
    signs = np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(axes)])
    return Embedding(mean, leading * signs)
