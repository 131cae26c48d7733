"""Drift as a picture: the mean images of then and now, of each digit too, their difference, and the most unusual digits."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images
from monitoring.image_statistics import STATISTICS, Columns, Values
from monitoring.samples import Sample

if TYPE_CHECKING:  # 1 s
    from matplotlib.axes import Axes

MAX_UNUSUAL = 16
MIN_IMAGES = 30  # of a digit on both sides, for a difference
MIN_FULL_COLOUR = 32  # grey levels; a smaller change is not drawn in the full colour
CHANCE = 4  # standard errors, up to which a difference is left out: then half a pixel of all is drawn by chance

_GAP = 4  # px between images
_NONE = np.full((SIZE, SIZE), np.nan)  # is drawn in the colour of the gaps


@dataclass(frozen=True, eq=False)
class MeanImage:
    """The mean of n images and its standard error, in grey levels, both of shape (28, 28)."""

    count: int
    mean: Values
    error: Values


def mean_image(images: Images) -> MeanImage:
    """Of no images, 0 everywhere."""
    count, pixels = max(len(images), 1), images.reshape(-1, SIZE * SIZE).astype(np.float32)
    mean = pixels.sum(axis=0, dtype=np.float64) / count
    variance = np.einsum("ij,ij->j", pixels, pixels, dtype=np.float64) / count - mean**2
    error = np.sqrt(np.maximum(variance, 0) / count)
    return MeanImage(len(images), mean.reshape(SIZE, SIZE), error.reshape(SIZE, SIZE))


def mean_images(sample: Sample) -> list[MeanImage]:
    """The mean of all images, then of those that the version reads as 0 to 9."""
    digits = sample.probabilities.argmax(axis=1)
    return [mean_image(sample.images), *(mean_image(sample.images[digits == digit]) for digit in range(10))]


def change(expected: MeanImage, current: MeanImage) -> Values:
    """The grey levels of ink that each pixel gained (positive) or lost in the mean, shape (28, 28)."""
    return current.mean - expected.mean


def visible_change(expected: MeanImage, current: MeanImage) -> Values:
    """The change where it exceeds what chance does, elsewhere 0; not a number where there are too few images."""
    if min(expected.count, current.count) < MIN_IMAGES:
        return _NONE
    found = change(expected, current)
    return np.where(np.abs(found) > CHANCE * np.hypot(expected.error, current.error), found, 0.0)


def unusual(reference: Columns, current: Columns) -> NDArray[np.int64]:
    """Indices of the current images that are least like the reference, the least like it first.

    By the Mahalanobis distance over the standardised image statistics; the covariance is shrunk, because some are nearly collinear.
    """
    from sklearn.covariance import ShrunkCovariance  # with its preprocessing 1 s
    from sklearn.preprocessing import StandardScaler

    expected, found = (np.column_stack([columns[name] for name in STATISTICS]) for columns in (reference, current))
    scaler = StandardScaler().fit(expected)
    covariance = ShrunkCovariance(shrinkage=0.05).fit(scaler.transform(expected))
    distances = covariance.mahalanobis(scaler.transform(found))
    return np.argsort(-distances, kind="stable")[:MAX_UNUSUAL]


def render(
    expected: Sequence[MeanImage],
    current: Sequence[MeanImage],
    images: Images,
    titles: Mapping[int, str],
    name: str = "reference",
) -> bytes:
    """The mean images, their differences, and some of the current images, given by index, with their titles; as a PNG.

    `name` is what the expected images are called.
    """
    from matplotlib import colormaps  # 1 s
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5))
    # A grid of images is drawn as one, because every pair of axes takes Matplotlib 50 ms.
    means, differences, examples = (
        figure.add_axes((0.1, bottom, 0.815, height)) for bottom, height in ((0.49, 0.4), (0.27, 0.2), (0.03, 0.15))
    )
    changes = [visible_change(*pair) for pair in zip(expected, current, strict=True)]
    full = max(MIN_FULL_COLOUR, *(np.abs(one[np.isfinite(one)]).max(initial=0) for one in changes))
    ink, signed = (colormaps[name].with_extremes(bad="#e8e8e8") for name in ("gray_r", "bwr"))
    looks: dict[str, Any] = {"interpolation": "nearest", "cmap": ink, "vmin": 0, "vmax": 255}
    drawn = means.imshow(
        _grid([[one.mean if one.count else _NONE for one in row] for row in (expected, current)]), **looks
    )
    figure.colorbar(drawn, cax=figure.add_axes((0.925, 0.5, 0.01, 0.38)), label="mean grey level")
    examples.imshow(_grid([[*images[list(titles)]]]), **looks)
    drawn = differences.imshow(_grid([changes]), **(looks | {"cmap": signed, "vmin": -full, "vmax": full}))
    figure.colorbar(drawn, cax=figure.add_axes((0.925, 0.275, 0.01, 0.19)), label="less     more")
    _put_titles(means, ["all", *_shares(expected, current)], _GAP)
    _put_titles(examples, titles.values(), _GAP / 2)
    captions = (
        (means, 0, f"{name}\n{expected[0].count:,}"),
        (means, 1, f"window\n{current[0].count:,}"),
        (differences, 0, f"window minus\n{name},\nbeyond chance"),
        (examples, 0, f"least like\nthe {name},\nread as"),
    )
    for axes, row, caption in captions:
        axes.text(-_GAP, _centre(row), caption, fontsize=9, ha="right", va="center")
        axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return buffer.getvalue()


def _shares(expected: Sequence[MeanImage], current: Sequence[MeanImage]) -> list[str]:
    """A title for each digit: its shares of all images, then and now."""
    return [
        f"{digit}\n{before.count / max(expected[0].count, 1):.0%} → {now.count / max(current[0].count, 1):.0%}"
        for digit, (before, now) in enumerate(zip(expected[1:], current[1:], strict=True))
    ]


def _put_titles(axes: "Axes", titles: Iterable[str], gap: float) -> None:
    """Write the titles above the images of the grid's first row."""
    for place, title in enumerate(titles):
        axes.text(_centre(place), -gap, title, fontsize=9, ha="center", va="bottom")


def _centre(place: int) -> float:
    """Of a row or column of the grid."""
    return place * (SIZE + _GAP) + SIZE / 2 - 0.5


def _grid(rows: Sequence[Sequence[NDArray[Any]]]) -> Values:
    """Images of equally long rows as one image, with gaps that are not drawn."""
    padded = [
        [np.pad(image.astype(np.float64), ((0, _GAP), (0, _GAP)), constant_values=np.nan) for image in row]
        for row in rows
    ]
    return np.block(padded)[:-_GAP, :-_GAP]
