"""Digits drawn stroke by stroke."""

from itertools import islice

import cv2
import numpy as np

from digits.pictures import styles
from digits.pictures.mnist_frame import to_mnist


def test_the_same_seed_draws_the_same_digits() -> None:
    one, other = (list(islice(styles.written(np.random.default_rng(3)), 20)) for _ in range(2))
    assert [label for _, label in one] == [label for _, label in other]
    np.testing.assert_array_equal([ink for ink, _ in one], [ink for ink, _ in other])


def test_every_digit_has_a_style_and_stays_on_its_page() -> None:
    drawn = list(islice(styles.written(np.random.default_rng(0)), 400))
    assert {label for _, label in drawn} == set(range(10))
    for ink, _ in drawn:
        assert ink.any() and not (ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())


def test_pens_widths_and_slants_differ() -> None:
    ones = [to_mnist(ink) for ink, label in islice(styles.written(np.random.default_rng(1)), 400) if label == 1]
    inks = [image.sum(dtype=int) for image in ones]
    widths = [cv2.boundingRect(image)[2] for image in ones]
    assert max(inks) > 2 * min(inks) and max(widths) > 2 * min(widths)
