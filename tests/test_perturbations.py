import numpy as np
import pytest
from monitored import held_out

from digits.data import perturbations

ALL = [
    (perturbations.shift, 1.0),
    (perturbations.rotate, 10.0),
    (perturbations.slant, 10.0),
    (perturbations.scale, 0.8),
    (perturbations.dim, 0.6),
    (perturbations.dim, 1.8),
    (perturbations.thicken, 1.5),
    (perturbations.thin, 1.0),
    (perturbations.noise, 20.0),
    (perturbations.blur, 1.0),
    (perturbations.grey_paper, 40.0),
    (perturbations.invert, 1.0),
    (perturbations.mirror, 1.0),
    (perturbations.transpose, 1.0),
]


@pytest.mark.parametrize(("change", "amount"), ALL)
def test_a_changed_image_is_a_valid_image_and_the_original_stays(change: perturbations.Change, amount: float) -> None:
    images = held_out()[0][:20]
    kept = images.copy()
    changed = change(images, amount)
    assert changed.dtype == np.uint8 and changed.shape == images.shape and changed.flags.c_contiguous
    assert (changed != images).any()
    np.testing.assert_array_equal(images, kept)


@pytest.mark.parametrize(
    ("change", "amount"), [(perturbations.shift, 0.0), (perturbations.rotate, 0.0), (perturbations.scale, 1.0)]
)
def test_no_amount_changes_nothing(change: perturbations.Change, amount: float) -> None:
    images = held_out()[0][:20]
    np.testing.assert_array_equal(change(images, amount), images)


def test_a_shift_by_whole_pixels_moves_them() -> None:
    images = held_out()[0][:20]
    np.testing.assert_array_equal(perturbations.shift(images, 2, -1)[:, :-1, 2:], images[:, 1:, :-2])


def test_a_quarter_turn_agrees_with_numpy() -> None:
    images = held_out()[0][:20]
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


def test_a_doubled_digit_is_drawn_twice_as_often_and_the_others_evenly_less() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 50)
    drawn = labels[perturbations.more_of(labels, 7, 2, 20_000, np.random.default_rng(0))]
    shares = np.bincount(drawn, minlength=10) / len(drawn)
    assert shares[7] == pytest.approx(0.2, abs=0.01)
    assert np.delete(shares, 7) == pytest.approx(0.8 / 9, abs=0.01)


def test_a_mix_that_cannot_be_is_refused() -> None:
    labels = np.repeat(np.arange(2, dtype=np.uint8), 50)
    with pytest.raises(ValueError, match="digit 1 2 times"):
        perturbations.more_of(labels, 1, 2, 10, np.random.default_rng(0))


def test_weights_bring_one_mix_to_another() -> None:
    digits = np.array([0, 0, 0, 1, 1, 2.0])
    weights = perturbations.weights_like(digits, np.array([0, 1, 1, 1.0]))
    assert weights[digits == 0].sum() / weights.sum() == pytest.approx(0.25)
    assert weights[digits == 2].sum() == 0
    assert (perturbations.weights_like(digits, np.array([9.0])) == 1).all()
