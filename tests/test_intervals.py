"""Shares come with the interval of the textbooks."""

import pytest
from scipy.stats import binomtest

from digits import intervals


def test_the_example_of_newcombe() -> None:
    share = intervals.wilson(81, 263)
    assert (share.low, share.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert str(share) == "30.80 % [25.53, 36.62]"


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 10), (7, 10), (9_798, 10_000), (10_000, 10_000)])
def test_scipy_agrees(right: int, count: int) -> None:
    share = intervals.wilson(right, count)
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert (share.low, share.high) == (pytest.approx(interval.low, abs=1e-7), pytest.approx(interval.high, abs=1e-7))
    assert 0 <= share.low <= share.value <= share.high <= 1
