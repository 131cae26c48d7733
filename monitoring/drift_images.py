"""What changed, to be seen: the mean image then and now, where ink came and went, and the digits least like the reference."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digits.images import SIZE, Images
from monitoring import image_statistics

ZOOM = 6  # screen pixels per pixel of a large picture
SMALL = 3  # of a small one
UNUSUAL = 16
_GAP = 12
_LINE = 16  # px of a line of text
_STRONG = 32.0  # grey levels of a change that is drawn in the full colour, at least

Map = NDArray[np.float64]  # (28, 28)


def mean(images: Images) -> Map:
    """The mean image in grey levels."""
    return images.mean(axis=0, dtype=np.float64)


def drift_map(reference: Images, current: Images) -> Map:
    """How many grey levels of ink each pixel gained (positive) or lost in the mean."""
    return mean(current) - mean(reference)


def unusual(reference: Images, current: Images, most: int = UNUSUAL) -> NDArray[np.int64]:
    """Indices of the current images least like the reference, the least first.

    By the Mahalanobis distance over the image statistics: in spreads of the reference, and aware of which belong together.
    """
    before, now = (_table(images) for images in (reference, current))
    spread = np.maximum(before.std(axis=0), 1e-6)
    before, now = ((table - before.mean(axis=0)) / spread for table in (before, now))
    covariance = np.cov(before, rowvar=False) + 0.05 * np.eye(
        before.shape[1]
    )  # 0.05: some hang together all but perfectly
    distances = np.einsum("ij,ij->i", now, np.linalg.solve(covariance, now.T).T)
    return np.argsort(-distances, kind="stable")[:most]


def _table(images: Images) -> NDArray[np.float64]:
    columns = image_statistics.measure(images)
    return np.stack([columns[name] for name in image_statistics.UNITS], axis=1)


def render(reference: Images, current: Images, answers: Sequence[int]) -> bytes:
    """A PNG of it all; `answers` are the digits answered on the current images."""
    change = drift_map(reference, current)
    large = [_grey(mean(reference)), _grey(mean(current)), _signed(change)]
    titles = ["mean then", "mean now", f"ink gained (red), lost (blue), up to {np.abs(change).max():.0f} levels"]
    chosen = unusual(reference, current)
    side, tile = SIZE * ZOOM, SIZE * SMALL
    per_row = UNUSUAL // 2
    width = max(3 * side + 4 * _GAP + 140, per_row * (tile + _GAP) + _GAP)
    page = Image.new("RGB", (width, side + 2 * (tile + _LINE) + 3 * _LINE + 4 * _GAP), "white")
    pen = ImageDraw.Draw(page)
    for i, (picture, title) in enumerate(zip(large, titles, strict=True)):
        left = _GAP + i * (side + _GAP)
        pen.text((left, _GAP), title, fill="black")
        page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, _GAP + _LINE))
    top = side + 2 * _GAP + _LINE
    pen.text((_GAP, top), "least like the reference, with what they were called", fill="black")
    for i, index in enumerate(chosen):
        left, up = _GAP + i % per_row * (tile + _GAP), top + _LINE + i // per_row * (tile + _LINE)
        page.paste(_grey(current[index]).resize((tile, tile), Image.Resampling.NEAREST), (left, up))
        pen.text((left, up + tile), str(answers[index]), fill="black")
    return to_png(page)


def to_png(picture: Image.Image) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _grey(image: NDArray[np.floating] | NDArray[np.uint8]) -> Image.Image:
    """Dark ink on white paper."""
    return Image.fromarray(255 - np.rint(image).astype(np.uint8)).convert("RGB")


def _signed(change: Map) -> Image.Image:
    """White where nothing changed, red where ink came, blue where it went."""
    share = change / max(np.abs(change).max(), _STRONG)
    gained, lost = np.clip(share, 0, 1), np.clip(-share, 0, 1)
    colours = np.stack([1 - lost, 1 - gained - lost, 1 - gained], axis=-1)
    return Image.fromarray(np.rint(255 * colours).astype(np.uint8))
