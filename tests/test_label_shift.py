import numpy as np
import pytest

from monitoring import label_shift


def test_shares_count_every_digit() -> None:
    assert label_shift.shares(np.array([0, 0, 9, 9], np.uint8)).tolist() == [0.5, *[0] * 8, 0.5]


def test_an_oversampled_digit_is_drawn_twice_as_often_and_the_others_evenly_less() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 50)
    drawn = labels[label_shift.oversample(labels, 7, 2, 20_000, np.random.default_rng(0))]
    shares = np.bincount(drawn, minlength=10) / len(drawn)
    assert shares[7] == pytest.approx(0.2, abs=0.01)
    assert np.delete(shares, 7) == pytest.approx(0.8 / 9, abs=0.01)


def test_an_impossible_share_is_refused() -> None:
    labels = np.repeat(np.arange(2, dtype=np.uint8), 50)
    with pytest.raises(ValueError, match="digit 1"):
        label_shift.oversample(labels, 1, 2, 10, np.random.default_rng(0))


def test_importance_weights_give_the_current_shares() -> None:
    digits = np.array([0, 0, 0, 1, 1, 2.0])
    weights = label_shift.importance_weights(digits, np.array([0, 1, 1, 1.0]))
    assert weights[digits == 0].sum() / weights.sum() == pytest.approx(0.25)
    assert weights[digits == 2].sum() == 0
    assert (label_shift.importance_weights(digits, np.array([9.0])) == 1).all()
