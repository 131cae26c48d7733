"""The image of a report shows what changed and where."""

import io

import numpy as np
import pytest
from monitored import answer, held_out, reference
from PIL import Image

from digits.data import perturbations
from digits.images import Images
from monitoring import drift_images, image_statistics, samples
from monitoring.samples import Sample

TITLES = dict.fromkeys(range(16), "3")


def test_the_change_is_signed_and_shows_where_ink_came_and_went() -> None:
    images = held_out()[0][:500]
    before, shifted, dimmed = (
        drift_images.mean_image(some)
        for some in (images, perturbations.shift(images, 2), perturbations.dim(images, 0.6))
    )
    change = drift_images.change(before, shifted)
    assert change.shape == (28, 28)
    right, left = change[:, 18:].sum(), change[:, :10].sum()
    assert right > 0 > left
    assert change.sum() == pytest.approx(0, abs=0.02 * images.mean(axis=0).sum())
    assert not drift_images.change(before, before).any()
    assert (drift_images.change(before, dimmed) <= 0).all()


def test_the_mean_of_every_digit_is_that_of_the_images_read_as_it() -> None:
    images = held_out()[0][:500]
    digits = answer(images).argmax(axis=1)
    means = drift_images.mean_images(of(images))
    assert [one.count for one in means] == [500, *np.bincount(digits, minlength=10)]
    for digit in range(10):
        assert means[digit + 1].mean == pytest.approx(images[digits == digit].mean(axis=0), abs=1e-3)
    assert means[0].error == pytest.approx(images.std(axis=0) / np.sqrt(500), abs=1e-3)
    assert not drift_images.mean_image(images[:0]).mean.any()


def test_a_change_is_drawn_where_it_exceeds_chance() -> None:
    images = held_out()[0]
    half = len(images) // 2
    before = drift_images.mean_image(images[:half])
    by_chance = drift_images.visible_change(before, drift_images.mean_image(images[half:]))
    assert np.count_nonzero(by_chance) < 10
    shifted = drift_images.mean_image(perturbations.shift(images[half:], 2))
    visible = drift_images.visible_change(before, shifted)
    assert np.count_nonzero(visible) > 150
    assert visible[visible != 0] == pytest.approx(drift_images.change(before, shifted)[visible != 0])
    few = drift_images.mean_image(images[: drift_images.MIN_IMAGES - 1])
    assert np.isnan(drift_images.visible_change(before, few)).all()


def test_what_is_no_digit_is_least_like_the_reference() -> None:
    images = held_out()[0][:300].copy()
    images[[7, 123]] = 255 - images[[7, 123]]
    images[200] = np.random.default_rng(0).integers(0, 256, (28, 28))
    expected, found = (image_statistics.measure(some) for some in (reference().images, images))
    assert set(drift_images.unusual(expected, found)[:3].tolist()) == {7, 123, 200}


def test_the_picture_is_a_small_png_that_follows_the_change() -> None:
    images = held_out()[0][:300]
    content = picture(images)
    assert len(content) < 100_000
    opened, changed = opened_png(content), opened_png(picture(perturbations.thicken(images, 2)))
    assert opened.size == changed.size == (1200, 500)
    assert _red(changed) > 5 * max(_red(opened), 100)


def of(images: Images) -> Sample:
    return samples.of_images(images, answer(images))


def picture(images: Images, titles: dict[int, str] = TITLES) -> bytes:
    before, current = drift_images.mean_images(samples.of_reference(reference())), drift_images.mean_images(of(images))
    return drift_images.render(before, current, images, titles)


def opened_png(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def _red(page: Image.Image) -> int:
    """How many pixels are clearly red."""
    red, green, blue = np.moveaxis(np.asarray(page).astype(int), 2, 0)
    return int(((red - green > 60) & (red - blue > 60)).sum())


def test_a_window_smaller_than_the_gallery_and_one_of_a_single_digit_are_drawn_too() -> None:
    images = held_out()[0]
    only = images[answer(images).argmax(axis=1) == 7][:50]
    for some in (images[:5], only):
        assert opened_png(picture(some, dict.fromkeys(range(5), "1"))).size == (1200, 500)
