"""Image statistics: what an incoming image looks like, in a few numbers with units, so that a drift can be described."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images

Values = NDArray[np.float64]  # (n,), one finite number per image
Columns = dict[str, Values]
Floats = NDArray[np.float32]

GRID = 4
BLOCKS = [f"block_{row}_{column}" for row in range(1, GRID + 1) for column in range(1, GRID + 1)]

# Images measured at once: 1.6 MB as float32, which stays in the cache.
_CHUNK_SIZE = 512


def _weights() -> Floats:
    """Weights of the linear sums, shape (784, 7 + 16): 1, x, y, x², y², xy, the border's mean, the blocks' means."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    border = np.ones((SIZE, SIZE))
    # MNIST keeps its digits inside the middle 20 x 20, so the frame is almost empty
    border[2:-2, 2:-2] = 0
    side = SIZE // GRID
    blocks = np.kron(np.eye(GRID * GRID).reshape(-1, GRID, GRID), np.ones((side, side)) / side**2)
    linear = [np.ones_like(x), x, y, x * x, y * y, x * y, border / border.sum()]
    return np.concatenate([np.stack(linear), blocks]).reshape(-1, SIZE * SIZE).T.astype(np.float32)


_WEIGHTS = _weights()


class Chunk:
    """Some images, and the sums that several statistics share: of shape (n,) unless said."""

    def __init__(self, images: Images) -> None:
        self.pixels: Floats = images.astype(np.float32)  # (n, 28, 28)
        flat = self.pixels.reshape(len(images), -1)
        sums = flat @ _WEIGHTS
        self.total, self.border, self.blocks = sums[:, 0], sums[:, 6], sums[:, 7:]  # blocks: (n, 16)
        # Means over the ink, in px from the centre of the image.
        self.x, self.y, xx, yy, xy = (_ratio(sums[:, i], self.total) for i in range(1, 6))
        self.variance_x = np.maximum(xx - self.x * self.x, 0)
        self.variance_y = np.maximum(yy - self.y * self.y, 0)
        self.shear = _ratio(self.x * self.y - xy, self.variance_y)
        # Mean grey level of the ink: the pixels weighted by themselves.
        self.level = _ratio(np.einsum("ij,ij->i", flat, flat), self.total)
        across = self.pixels[:, :-1, 1:] - self.pixels[:, :-1, :-1]
        down = self.pixels[:, 1:, :-1] - self.pixels[:, :-1, :-1]
        squares = (across * across + down * down).reshape(len(images), -1)
        # Sums of the gradient's length (the total variation) and of its square.
        self.gradient, self.squared_gradient = np.sqrt(squares).sum(axis=1), squares.sum(axis=1)


def noise(chunk: Chunk) -> Floats:
    """Standard deviation of the noise: the median response to the kernel of Immerkaer (CVIU 64, 1996).

    The median ignores strokes, which cover less than half of a digit. Every fourth response is enough, in a quarter of the time.
    """
    across = chunk.pixels[:, :, 2::2] - 2 * chunk.pixels[:, :, 1:-1:2] + chunk.pixels[:, :, :-2:2]
    both = np.abs(across[:, 2::2] - 2 * across[:, 1:-1:2] + across[:, :-2:2]).reshape(len(across), -1)
    middle = both.shape[1] // 2
    # 6 is the norm of the kernel, 0.6745 the median of |x| for a standard normal x
    return np.partition(both, middle, axis=1)[:, middle] * np.float32(1 / (6 * 0.6745))


@dataclass(frozen=True)
class Statistic:
    """One number per image: a function of a chunk that returns finite values of shape (n,), and their unit."""

    function: Callable[[Chunk], NDArray[np.floating[Any]]]
    unit: str


# A statistic added here is measured, calibrated, reported and shown on the dashboard.
STATISTICS = {
    "ink": Statistic(lambda chunk: chunk.total / (SIZE**2 * 255), "mean pixel, 0 to 1"),
    "centre_x": Statistic(lambda chunk: chunk.x, "px right of the middle"),
    "centre_y": Statistic(lambda chunk: chunk.y, "px below the middle"),
    "spread_x": Statistic(lambda chunk: np.sqrt(chunk.variance_x), "px"),
    "spread_y": Statistic(lambda chunk: np.sqrt(chunk.variance_y), "px"),
    # Angle of the shear that would set the digit upright (Teague, J. Opt. Soc. Am. 70, 1980).
    "slant": Statistic(lambda chunk: np.degrees(np.arctan(chunk.shear)), "degrees, leaning right is positive"),
    # Twice the inked area over the length of its outline.
    "stroke_width": Statistic(lambda chunk: _ratio(2 * chunk.total, chunk.gradient), "px"),
    "stroke_level": Statistic(lambda chunk: chunk.level, "grey levels"),
    "contrast": Statistic(lambda chunk: chunk.pixels.std(axis=(1, 2)), "grey levels"),
    # Mean of the outer two pixels.
    "border": Statistic(lambda chunk: chunk.border, "grey levels"),
    "edges": Statistic(lambda chunk: chunk.gradient / (SIZE - 1) ** 2, "grey levels per px"),
    # Distance in which paper becomes ink.
    "edge_width": Statistic(lambda chunk: _ratio(chunk.gradient * chunk.level, chunk.squared_gradient), "px"),
    "noise": Statistic(noise, "grey levels"),
}


def measure(images: Images) -> Columns:
    """Every statistic of every image, in its unit, and the image's 4 x 4 block means in grey levels."""
    parts = [_measure(images[start : start + _CHUNK_SIZE]) for start in range(0, len(images), _CHUNK_SIZE)]
    table = np.concatenate(parts).astype(np.float64)
    return dict(zip([*STATISTICS, *BLOCKS], np.ascontiguousarray(table.T), strict=True))


def _measure(images: Images) -> Floats:
    """One chunk, shape (n, statistics + 16); its arrays are freed before the next chunk needs memory, which halves the time."""
    chunk = Chunk(images)
    return np.column_stack([*(statistic.function(chunk) for statistic in STATISTICS.values()), chunk.blocks])


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient; 0 where the denominator is 0 or, up to 1e-3, only a variance's rounding error."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 1e-3)


def distance(reference: Values, current: Values, weights: Values | None = None) -> float:
    """Two-sample Kolmogorov-Smirnov distance: the largest difference of the two distribution functions, 0 to 1.

    `weights` (not negative, not all 0) says how much each reference value counts, which SciPy's `ks_2samp` does not offer.
    """
    order = np.argsort(reference, kind="stable")
    first, second = reference[order], np.sort(current)
    counted = np.cumsum(np.ones(len(first)) if weights is None else weights[order])
    cumulative = np.concatenate([[0.0], counted / counted[-1]])
    values = np.concatenate([first, second])
    expected = cumulative[np.searchsorted(first, values, "right")]
    return float(np.abs(expected - np.searchsorted(second, values, "right") / len(second)).max())


def principal_axes(images: Images, count: int = 6) -> Values:
    """The first principal components of the pixels, one in each column, shape (784, count)."""
    from scipy.linalg import eigh  # 0.3 s; finds some components in half the time that NumPy's takes for all

    covariance = np.cov(images.reshape(len(images), -1), rowvar=False)
    size = len(covariance)
    components: Values = eigh(covariance, subset_by_index=(size - count, size - 1))[1]
    return components[:, ::-1]
