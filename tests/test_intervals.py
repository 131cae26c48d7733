"""Wilson's interval is that of the textbooks."""

import math

import pytest

from digits import intervals


def test_the_example_of_newcombe() -> None:
    """Statistics in Medicine 17 (1998), 857-872, table I."""
    proportion = intervals.wilson(81, 263)
    assert (proportion.low, proportion.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert str(proportion) == "30.80 % [25.53, 36.62]"


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 10), (7, 10), (9_798, 10_000), (10_000, 10_000)])
def test_the_limits_solve_wilsons_equation(right: int, count: int) -> None:
    """Each limit p is 1.96 of its own standard errors away from the observed proportion."""
    proportion = intervals.wilson(right, count)
    for limit in (proportion.low, proportion.high):
        if 0 < limit < 1:
            distance = abs(right / count - limit) / math.sqrt(limit * (1 - limit) / count)
            assert distance == pytest.approx(1.959964, abs=1e-5)
    assert 0 <= proportion.low <= proportion.value <= proportion.high <= 1
