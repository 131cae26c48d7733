"""Drift as an image: the mean images of reference and window, where ink was gained and lost, and the most unusual digits."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images
from monitoring.image_statistics import STATISTICS, Columns, Values

MAX_UNUSUAL = 16

_PER_ROW = MAX_UNUSUAL // 2
_CELL = 40  # px


def drift_map(reference: Images, current: Images) -> Values:
    """The grey levels of ink that each pixel gained (positive) or lost in the mean, shape (28, 28)."""
    return current.mean(axis=0) - reference.mean(axis=0)


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


def render(reference: Images, current: Images, titles: Mapping[int, str], name: str = "reference") -> bytes:
    """The mean images, their difference and some current images, given by index, with their titles; as a PNG.

    `name` is what the first images are called.
    """
    from matplotlib.figure import Figure  # 1 s

    change = drift_map(reference, current)
    largest = np.abs(change).max()
    # A change of fewer grey levels is not drawn in the full colour.
    full = max(largest, 32.0)
    ink: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 255}
    means = [
        (f"mean of the {name}", reference.mean(axis=0), ink),
        ("mean of the window", current.mean(axis=0), ink),
        (f"ink gained (red), lost (blue), at most {largest:.0f}", change, {"cmap": "bwr", "vmin": -full, "vmax": full}),
    ]
    figure = Figure(figsize=(9, 6))
    layout = figure.add_gridspec(2, 1, height_ratios=(3, 2))
    above, below = (figure.add_subfigure(layout[row]) for row in (0, 1))
    below.suptitle(f"least like the {name}, with the predicted digits", y=1.1)
    for axes, (title, image, colours) in zip(above.subplots(1, 3), means, strict=True):
        axes.imshow(image, **colours)
        axes.set_title(title, fontsize=9)
    # One picture of all examples, because each pair of axes takes Matplotlib 50 ms.
    grid = below.subplots()
    grid.imshow(_contact_sheet(current, list(titles)), **ink)
    for place, title in enumerate(titles.values()):
        row, column = divmod(place, _PER_ROW)
        grid.text((column + 0.5) * _CELL, row * _CELL + _CELL - SIZE - 2, title, fontsize=9, ha="center")
    for axes in figure.axes:
        axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return buffer.getvalue()


def _contact_sheet(images: Images, rows: list[int]) -> Images:
    """These images side by side, each at the bottom of a square cell with room for its title."""
    sheet = np.zeros((MAX_UNUSUAL // _PER_ROW * _CELL, _PER_ROW * _CELL), np.uint8)
    for place, row in enumerate(rows):
        top, left = (_CELL * position for position in divmod(place, _PER_ROW))
        right, bottom = left + (_CELL + SIZE) // 2, top + _CELL
        sheet[bottom - SIZE : bottom, right - SIZE : right] = images[row]
    return sheet
