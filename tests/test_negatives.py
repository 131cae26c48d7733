"""Images that show no digit."""

from itertools import islice

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from digits.images import SIZE, Images
from digits.pictures import negatives
from digits.pictures.mnist_frame import to_mnist


@pytest.fixture(scope="module")
def digits() -> Images:
    """A hundred digits in MNIST's form."""
    small = (load_digits().images[:100] * 15.9).astype(np.uint8)
    return np.stack([to_mnist(cv2.resize(np.pad(digit, 2), (60, 60))) for digit in small])


def test_as_many_as_asked_for_are_made_and_the_same_from_the_same_seed(digits: Images) -> None:
    one, other = (negatives.negatives(digits, 53, np.random.default_rng(2)) for _ in range(2))
    assert one.shape == (53, SIZE, SIZE) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one.reshape(53, -1), axis=0)) > 45


def test_parts_have_less_ink_than_their_digits_and_pairs_more(digits: Images) -> None:
    ink = digits.sum(axis=(1, 2), dtype=float)
    parts = [part.sum(dtype=float) for part in islice(negatives.parts(digits, np.random.default_rng(0)), 50)]
    pairs = [pair.sum(dtype=float) for pair in islice(negatives.pairs(digits, np.random.default_rng(0)), 50)]
    assert max(parts) <= negatives.MAX_PART * ink.max()
    assert np.mean(pairs) > 1.5 * ink.mean()


def test_letters_that_look_like_digits_and_the_fonts_of_the_evaluation_are_left_out() -> None:
    assert not set(negatives.LETTERS) & set("OoIlSsZzBbgq")
    training = {font.getname() for font in negatives._fonts(negatives.TRAINING_FONTS)}
    evaluation = {font.getname() for font in negatives.evaluation_fonts()}
    assert len(evaluation) >= 5 and not training & evaluation


@pytest.mark.parametrize("kind", [negatives.letters, negatives.scribbles, negatives.textures])
def test_every_kind_has_ink(kind: negatives.Kind) -> None:
    for ink in islice(kind(np.random.default_rng(0)), 60):
        assert to_mnist(ink).any()


def test_none_are_made_where_none_are_asked_for(digits: Images) -> None:
    assert negatives.negatives(digits, 0, np.random.default_rng(0)).shape == (0, SIZE, SIZE)
