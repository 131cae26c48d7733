"""The image of a report shows what changed and where."""

import io

import numpy as np
import pytest
from monitored import held_out, reference
from PIL import Image

from digits.data import perturbations
from monitoring import drift_images, image_statistics

TITLES = dict.fromkeys(range(16), "3")


def test_the_map_is_signed_and_shows_where_ink_came_and_went() -> None:
    images = held_out()[0][:500]
    change = drift_images.drift_map(images, perturbations.shift(images, 2))
    assert change.shape == (28, 28)
    right, left = change[:, 18:].sum(), change[:, :10].sum()
    assert right > 0 > left
    assert change.sum() == pytest.approx(0, abs=0.02 * images.mean(axis=0).sum())
    assert not drift_images.drift_map(images, images).any()
    assert (drift_images.drift_map(images, perturbations.dim(images, 0.6)) <= 0).all()


def test_what_is_no_digit_is_least_like_the_reference() -> None:
    images = held_out()[0][:300].copy()
    images[[7, 123]] = 255 - images[[7, 123]]
    images[200] = np.random.default_rng(0).integers(0, 256, (28, 28))
    expected, found = (image_statistics.measure(some) for some in (reference().images, images))
    assert set(drift_images.unusual(expected, found)[:3].tolist()) == {7, 123, 200}


def test_the_page_is_a_small_png_that_follows_the_change() -> None:
    images = held_out()[0][:300]
    page = drift_images.render(reference().images, images, TITLES)
    assert len(page) < 100_000
    opened = Image.open(io.BytesIO(page)).convert("RGB")
    changed = Image.open(
        io.BytesIO(drift_images.render(reference().images, perturbations.thicken(images, 2), TITLES))
    ).convert("RGB")
    assert opened.size == changed.size
    assert _pure(changed, "red") > 5 * max(_pure(opened, "red"), 100)


def _pure(page: Image.Image, colour: str) -> int:
    """How many pixels are clearly of the colour."""
    pixels = np.asarray(page).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return int(((red - green > 60) & (red - blue > 60)).sum()) if colour == "red" else int((blue - red > 60).sum())


def test_a_window_smaller_than_the_gallery_is_drawn_too() -> None:
    images = held_out()[0][:5]
    assert (
        Image.open(io.BytesIO(drift_images.render(reference().images, images, dict.fromkeys(range(5), "1")))).size[0]
        > 300
    )
