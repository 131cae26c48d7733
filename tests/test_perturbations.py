import numpy as np
import pytest
from monitored import held_out

from digits.data import perturbations
from digits.data.perturbations import PERTURBATIONS

IDENTITY = {"scale": 1.0, "dim": 1.0} | dict.fromkeys(
    ("shift", "jitter", "rotate", "slant", "thicken", "thin", "noise", "grey_paper"), 0.0
)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbed_image_is_a_valid_image_at_every_amount_and_the_original_stays(name: str) -> None:
    perturbation = PERTURBATIONS[name]
    images = held_out()[0][:20]
    kept = images.copy()
    for amount in (perturbation.default, *perturbation.range):
        perturbed = perturbation.apply(images, amount)
        assert perturbed.dtype == np.uint8 and perturbed.shape == images.shape and perturbed.flags.c_contiguous
        np.testing.assert_array_equal(images, kept)
    assert (perturbation.apply(images, perturbation.default) != images).any()
    assert perturbation.apply(images[:0], perturbation.default).shape == (0, 28, 28)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_default_amount_is_in_the_range_and_is_described(name: str) -> None:
    perturbation = PERTURBATIONS[name]
    low, high = perturbation.range
    assert low <= perturbation.default <= high
    assert len(perturbation.describe(perturbation.default)) > 8
    assert low == high or perturbation.describe(low) != perturbation.describe(high)


@pytest.mark.parametrize("name", IDENTITY)
def test_the_neutral_amount_changes_nothing(name: str) -> None:
    images = held_out()[0][:20]
    np.testing.assert_array_equal(PERTURBATIONS[name].apply(images, IDENTITY[name]), images)


def test_a_shift_is_described_by_its_directions() -> None:
    assert perturbations.describe_shift(2) == "shifted 2 px right"
    assert perturbations.describe_shift(-1, 1.5) == "shifted 1 px left and 1.5 px down"
    assert perturbations.describe_shift(0.1, -3) == "shifted 3 px up"


def test_a_shift_by_whole_pixels_moves_them() -> None:
    images = held_out()[0][:20]
    np.testing.assert_array_equal(perturbations.shift(images, 2, -1)[:, :-1, 2:], images[:, 1:, :-2])


def test_jitter_moves_the_images_in_turn_to_the_four_sides() -> None:
    images = np.repeat(held_out()[0][:1], 4, axis=0)
    moved = perturbations.jitter(images, 2)
    for image, expected in zip(moved, [(2, 0), (-2, 0), (0, 2), (0, -2)], strict=True):
        np.testing.assert_array_equal(image, perturbations.shift(images[:1], *expected)[0])


def test_quarter_turns_agree_with_rotations() -> None:
    images = held_out()[0][:20]
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(
            perturbations.quarter_turn(images, turns), perturbations.rotate(images, 90 * turns)
        )
    np.testing.assert_array_equal(perturbations.rotate(images, 90), np.rot90(images, -1, axes=(1, 2)))


def test_rotation_agrees_with_scipy() -> None:
    from scipy.ndimage import rotate

    images = held_out()[0][:20]
    expected = rotate(images.astype(float), -20, axes=(1, 2), reshape=False, order=1)
    assert np.abs(perturbations.rotate(images, 20) - expected)[:, 4:-4, 4:-4].max() <= 1


@pytest.mark.parametrize("n", [1, 20])
def test_bilinear_sampling_agrees_with_scipy(n: int) -> None:
    """Coordinates for each image and the same coordinates for all, some of them outside the image."""
    from scipy.ndimage import map_coordinates

    images = held_out()[0][:20]
    rows, columns = np.random.default_rng(0).uniform(-4, 32, (2, n, 28, 28)).astype(np.float32)
    where = np.broadcast_arrays(np.arange(20)[:, None, None], rows, columns)
    expected = map_coordinates(
        np.pad(images.astype(float), ((0, 0), (2, 2), (2, 2))), [where[0], where[1] + 2, where[2] + 2], order=1
    )
    assert np.abs(perturbations.sample_bilinear(images, rows, columns) - expected).max() <= 0.51


def test_the_extreme_of_a_neighbourhood_agrees_with_scipy() -> None:
    from scipy.ndimage import maximum_filter, minimum_filter

    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).astype(np.uint8)
    for extreme, expected in ((np.maximum, maximum_filter), (np.minimum, minimum_filter)):
        np.testing.assert_array_equal(
            perturbations.neighbourhood_extreme(images, extreme), expected(images, (1, 3, 3), mode="constant")
        )


def test_thick_strokes_contain_the_plain_ones_and_thin_ones_lie_within() -> None:
    images = held_out()[0][:20].astype(int)
    plain = images.astype(np.uint8)
    assert (perturbations.thicken(plain) >= images).all() and (perturbations.thin(plain) <= images).all()
    assert (
        perturbations.thicken(plain, 2).sum()
        > perturbations.thicken(plain).sum()
        > perturbations.thicken(plain, 0.5).sum()
        > images.sum()
    )
