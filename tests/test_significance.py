"""A thousand candidates that are no better promote about none, and the first one after a change has a fair chance."""

from itertools import pairwise

import numpy as np
import pytest

from models.gate import GatePolicy
from models.significance import level, share, smallest_p_value

STREAM = GatePolicy().significance


def test_the_shares_of_an_amount_add_up_to_it() -> None:
    numbers = np.arange(1, 1_000_001)
    rest = numbers[-1] ** -0.6 / 0.6 / 2.2857656  # of the sum from there on, by its integral
    assert sum(map(share, numbers.tolist())) + rest == pytest.approx(1, abs=1e-6)


def test_the_first_judgement_has_about_one_percent_and_later_ones_less() -> None:
    levels = [level([False] * count, STREAM) for count in range(1000)]
    assert levels[0] == pytest.approx(0.011, abs=0.0005)
    assert all(later < earlier for earlier, later in pairwise(levels))
    assert sum(levels) < STREAM / 2


def test_a_promotion_earns_significance_for_the_next_champion() -> None:
    assert level([False] * 50 + [True], STREAM) > level([], STREAM) > 20 * level([False] * 51, STREAM)


def test_levels_are_never_more_than_what_the_promotions_earned() -> None:
    """Then of all promotions at most the share STREAM is false, also where the p-values depend on each other."""
    history: list[bool] = []
    spent = 0.0
    for was_promoted in np.random.default_rng(0).random(500) < 0.1:
        spent += level(history, STREAM)
        assert spent <= STREAM * max(1, sum(history))
        history.append(bool(was_promoted))


def test_a_thousand_equally_good_candidates_in_a_row_promote_one_in_at_most_a_fortieth_of_all_streams() -> None:
    levels = np.array([level([False] * count, STREAM) for count in range(1000)])
    streams = np.random.default_rng(1).random((2000, 1000)) <= levels
    assert streams.any(axis=1).mean() <= STREAM / 2 + 3 * np.sqrt(STREAM / 2 / 2000)


def test_the_smallest_p_value_is_corrected_for_the_number_of_tests() -> None:
    assert (
        smallest_p_value({"a: p-value": 0.01, "b: p-value": 0.5, "b: images": 0.001, "corruption blur: p-value": 0})
        == 0.02
    )
    assert smallest_p_value({"a: p-value": 0.9, "b: p-value": 0.9}) == smallest_p_value({}) == 1
