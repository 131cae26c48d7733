"""Drift as an image: the mean images of reference and window, where ink was gained and lost, and the most unusual digits."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digits.images import SIZE, Images
from monitoring import image_statistics
from monitoring.image_statistics import STATISTICS

MAX_UNUSUAL = 16
# screen pixels per pixel of a mean image, and of an unusual digit
_LARGE, _SMALL = 6, 3
# px between images, and of a line of text
_GAP, _LINE = 12, 16
# grey levels; a smaller change is not drawn in the full colour
_MIN_FULL_SCALE = 32.0

Map = NDArray[np.float64]  # (28, 28)


def mean(images: Images) -> Map:
    """The mean image in grey levels."""
    return images.mean(axis=0, dtype=np.float64)


def drift_map(reference: Images, current: Images) -> Map:
    """The grey levels of ink that each pixel gained (positive) or lost in the mean."""
    return mean(current) - mean(reference)


def unusual(reference: Images, current: Images, limit: int = MAX_UNUSUAL) -> NDArray[np.int64]:
    """Indices of the current images that are least like the reference, the least like it first.

    By the Mahalanobis distance over the standardised image statistics; the covariance is shrunk, because some are nearly collinear.
    """
    from sklearn.covariance import ShrunkCovariance  # with its preprocessing 1 s
    from sklearn.preprocessing import StandardScaler

    expected, found = (_table(images) for images in (reference, current))
    scaler = StandardScaler().fit(expected)
    covariance = ShrunkCovariance(shrinkage=0.05).fit(scaler.transform(expected))
    distances = covariance.mahalanobis(scaler.transform(found))
    return np.argsort(-distances, kind="stable")[:limit]


def _table(images: Images) -> NDArray[np.float64]:
    columns = image_statistics.measure(images)
    return np.stack([columns[name] for name in STATISTICS], axis=1)


def render(reference: Images, current: Images, digits: Sequence[int]) -> bytes:
    """All of it as a PNG; `digits` are those predicted for the current images."""
    change = drift_map(reference, current)
    scale = f"ink gained (red), lost (blue), at most {np.abs(change).max():.0f} grey levels"
    means = {"mean of the reference": reference, "mean of the window": current}
    large = {title: _grey(mean(images)) for title, images in means.items()} | {scale: _signed(change)}
    side, tile, per_row = SIZE * _LARGE, SIZE * _SMALL, MAX_UNUSUAL // 2
    width = max(3 * side + 4 * _GAP + 140, per_row * (tile + _GAP) + _GAP)
    page = Image.new("RGB", (width, side + 2 * (tile + _LINE) + 3 * _LINE + 4 * _GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (title, image) in enumerate(large.items()):
        left = _GAP + i * (side + _GAP)
        draw.text((left, _GAP), title, fill="black")
        page.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, _GAP + _LINE))
    top = side + 2 * _GAP + _LINE
    draw.text((_GAP, top), "least like the reference, with the predicted digits", fill="black")
    for i, index in enumerate(unusual(reference, current)):
        left, up = _GAP + i % per_row * (tile + _GAP), top + _LINE + i // per_row * (tile + _LINE)
        page.paste(_grey(current[index]).resize((tile, tile), Image.Resampling.NEAREST), (left, up))
        draw.text((left, up + tile), str(digits[index]), fill="black")
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _grey(image: NDArray[np.floating] | NDArray[np.uint8]) -> Image.Image:
    """Dark ink on white paper."""
    return Image.fromarray(255 - np.rint(image).astype(np.uint8)).convert("RGB")


def _signed(change: Map) -> Image.Image:
    """White where nothing changed, red where ink was gained, blue where it was lost."""
    share = change / max(np.abs(change).max(), _MIN_FULL_SCALE)
    gained, lost = np.clip(share, 0, 1), np.clip(-share, 0, 1)
    colours = np.stack([1 - lost, 1 - gained - lost, 1 - gained], axis=-1)
    return Image.fromarray(np.rint(255 * colours).astype(np.uint8))
