"""The threshold of the digit score."""

import numpy as np
import pytest

from models import digit_score


def test_the_threshold_flags_the_share_that_was_asked_for() -> None:
    scores = np.random.default_rng(0).normal(5, 2, 100_000).astype(np.float32)
    threshold = digit_score.calibrate(scores[:50_000])
    flagged = ~digit_score.is_digit(scores[50_000:], threshold)
    assert flagged.mean() == pytest.approx(digit_score.FLAGGED_SHARE, rel=0.4)


def test_the_threshold_is_never_beyond_what_the_digits_can_tell() -> None:
    scores = np.arange(499, dtype=np.float32)
    assert digit_score.calibrate(scores[:498]) is None
    assert digit_score.calibrate(scores) == 0


def test_without_a_threshold_or_a_score_every_image_is_a_digit() -> None:
    assert digit_score.is_digit(np.array([-100.0], np.float32), None).all()
    assert digit_score.is_digit(np.array([np.nan], np.float32), 3.0).all()
    assert digit_score.is_digit(np.array([-1.0, 0.0, 1.0], np.float32), 0.0).tolist() == [False, True, True]
