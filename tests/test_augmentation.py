"""Distortion moves, turns, bends and thickens as much as it is told, and repeats itself for the same seed."""

import numpy as np
import pytest

from models.augmentation import Augmentation, augment, ranges

STILL = dict.fromkeys(("rotation_radians", "scale", "shear", "shift_pixels", "elastic_pixels", "thickness"), 0.0)


def bars(n: int) -> np.ndarray:
    """An upright bar, 20 px high and 4 px wide, in the middle of each image."""
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 4:24, 12:16] = 255
    return images


def centre(images: np.ndarray, axis: int) -> np.ndarray:
    weights = images.astype(float).sum(axis=3 - axis)
    return (weights * np.arange(28)).sum(axis=1) / weights.sum(axis=1)


def make(**changes: float) -> np.ndarray:
    return augment(bars(500), Augmentation(**{**STILL, **changes}), np.random.default_rng(0))


def test_without_ranges_nothing_changes() -> None:
    np.testing.assert_array_equal(make(), bars(500))


def test_the_same_seed_gives_the_same_images() -> None:
    first, second = (augment(bars(50), Augmentation(), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != augment(bars(50), Augmentation(), np.random.default_rng(4))).any()


def test_shifts_fill_their_range() -> None:
    moved = make(shift_pixels=2)
    for axis in (1, 2):
        offsets = centre(moved, axis) - 13.5
        assert offsets.min() == pytest.approx(-2, abs=0.1) and offsets.max() == pytest.approx(2, abs=0.1)


def test_rotation_keeps_the_centre_and_widens_the_bar() -> None:
    turned = make(rotation_radians=0.3)
    np.testing.assert_allclose(centre(turned, 2), 13.5, atol=0.1)
    assert (turned.max(axis=1) > 0).sum(axis=1).max() >= 9  # 4 px, and 20 * sin(0.3) = 5.9 px of lean


def test_thickness_changes_the_ink_both_ways() -> None:
    ink = make(thickness=1.0).astype(float).sum(axis=(1, 2)) / (20 * 4 * 255)
    assert ink.min() == pytest.approx(18 * 2 / 80, abs=0.02)  # one pixel less on each side
    assert ink.max() == pytest.approx(22 * 6 / 80, abs=0.03)  # one pixel more on each side


def test_elastic_bending_moves_pixels_by_about_what_is_expected() -> None:
    bent = make(elastic_pixels=36)
    changed = np.abs(bent.astype(int) - bars(500)).mean()
    assert 10 < changed < 40
    assert len({image.tobytes() for image in bent}) == 500


def test_the_ranges_shrink_evenly_to_their_final_share() -> None:
    augmentation = Augmentation(shift_pixels=2, final_share=0.25)
    assert ranges(augmentation, 0) == augmentation
    assert ranges(augmentation, 0.5).shift_pixels == pytest.approx(1.25)
    assert ranges(augmentation, 1).shift_pixels == pytest.approx(0.5)
    assert ranges(augmentation, 1).elastic_sigma_pixels == augmentation.elastic_sigma_pixels
