"""The sequential test: no gain under the hypothesis, by enumeration; the definition as a sum over starts; the interval."""

from itertools import product

import numpy as np
import pytest

from monitoring import sequential
from monitoring.sequential import BETS


def direct(values: np.ndarray, days: np.ndarray, expected: float) -> float:
    """The definition: every day starts a bet of each size with its share of the capital, of which 1 / 21 is left after day 19."""
    capital = 1 / 21
    for day in range(20):
        share = 1 / ((day + 1) * (day + 2))
        since = values[days >= day]
        gains = [np.prod(1 + bet / (1 - expected) * (expected - since)) for bet in BETS] if len(since) else [1.0]
        capital += share * float(np.mean(gains))
    return capital


def test_the_recursion_is_the_sum_over_all_starts() -> None:
    values, days = np.array([1, 1, 0, 0.5, 1, 0]), np.array([0, 0, 3, 3, 7, 8])
    path = sequential.log_e_values(values, days, 0.9)
    for n in range(1, len(values) + 1):
        assert np.exp(path[n - 1]) == pytest.approx(direct(values[:n], days[:n], 0.9), rel=1e-9)


def test_without_the_bets_of_the_first_days_there_is_less_capital() -> None:
    values, days = np.array([1, 0, 0, 1.0]), np.array([1, 2, 4, 4])
    path = sequential.log_e_values(values, days, 0.9, first_day=1)
    left_out = [0.5 * np.mean([np.prod(1 + bet * 10 * (0.9 - values[:n])) for bet in BETS]) for n in range(1, 5)]
    assert np.exp(path) == pytest.approx(np.exp(sequential.log_e_values(values, days, 0.9)) - left_out)


def test_the_bets_gain_nothing_under_the_hypothesis() -> None:
    """All 4,096 sequences of twelve observations, weighted by their probabilities where the accuracy is just the expected one."""
    sequences = np.array(list(product([0.0, 1.0], repeat=12))).T
    probabilities = np.where(sequences == 1, 0.9, 0.1).prod(axis=0)
    e_values = np.exp(sequential.log_e_values(sequences, np.arange(12) // 3, 0.9))
    assert (e_values @ probabilities) == pytest.approx(np.ones(12))
    assert probabilities[e_values.max(axis=0) >= 10].sum() <= 0.1


def test_a_label_that_comes_late_counts_as_if_it_had_come_in_time() -> None:
    values, days = np.array([1.0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 1, 2])
    order = [1, 0, 4, 2, 3, 5]
    last = [sequential.log_e_values(one, days, 0.9)[-1] for one in (values, values[order])]
    assert last[0] == pytest.approx(last[1])


def test_each_series_has_its_own_expected_accuracy() -> None:
    random = np.random.default_rng(0)
    values, days = (random.random((30, 2)) < 0.8).astype(float), np.arange(30)
    both = sequential.log_e_values(values, days, np.array([0.9, 0.95]))
    for series, expected in enumerate((0.9, 0.95)):
        assert both[:, series] == pytest.approx(sequential.log_e_values(values[:, series], days, expected))


def test_the_start_of_a_fall_is_found() -> None:
    days = np.repeat(np.arange(40), 20)
    random = np.random.default_rng(1)
    values = (random.random(800) < np.where(days < 30, 0.98, 0.7)).astype(float)
    assert sequential.likely_start(values, days, 0.97) in (29, 30, 31)


def test_the_interval_is_what_the_bets_do_not_refute() -> None:
    values = np.repeat([1.0, 0.0], [90, 10])
    low, high = sequential.interval(values, day=0)
    assert 0.7 < low < 0.9 < high < 0.99
    limit = 2 * 2 / 0.05
    for mean, refuted in ((high - 0.001, False), (high + 0.001, True)):
        gains = np.mean([np.prod(1 + bet / (1 - mean) * (mean - values)) for bet in BETS])
        assert (gains >= limit) == refuted
    wider = sequential.interval(values, day=60)
    assert wider[0] < low and high < wider[1]
    assert sequential.interval(np.ones(20), 0)[1] == 1 and sequential.interval(np.zeros(20), 0)[0] == 0
