"""Tests sequentially whether an accuracy fell below the expected one, with an interval; both hold at every look: e-processes by betting.

A bet against the hypothesis "each observation is right with at least this probability" wins on errors and loses on right ones; under
the hypothesis no bet gains on average, so the capital exceeds 1 / alpha at any time with a probability of at most alpha (Ville 1939).
The bets are fixed fractions of the largest one that cannot go bankrupt (Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86, 2024). New
bets start each day with a share of the capital; the shares 1 / ((day + 1) (day + 2)) sum to 1. So a fall at any time is found
without the loss of the good days before it (the mixtures over starting times of Shin, Ramdas and Rinaldo, New England J. Stat. Data
Sci. 2, 2024, as an e-process).
"""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Days = NDArray[np.int64]

# Fractions of the largest bet. The fraction f wins most where the accuracy fell from `expected` to (1 - f) * expected.
BETS = 2.0 ** -np.arange(1, 8)


def log_e_values(values: Values, days: Days, expected: float | Values, first_day: int = 0) -> Values:
    """The logarithm of the capital after each observation, of the bets that the accuracy is below `expected`, 0 <= expected < 1.

    `values` in [0, 1], shape (n,) or (n, series), are the observations; `days`, shape (n,), the days since the first one possible,
    ascending; `expected` is one number, or one for each series. Bets from before `first_day` are left out, with their shares.
    """
    capital = np.full((*values.shape[1:], len(BETS)), -np.inf)
    path, next_day = np.empty(values.shape), first_day
    for n, (value, day) in enumerate(zip(values, days.tolist(), strict=True)):
        if day >= next_day:
            # The shares of all days since the last observation's: their sum telescopes.
            capital = np.logaddexp(capital, np.log(1 / (next_day + 1) - 1 / (day + 2)))
            next_day = day + 1
        capital = capital + _log_gains(value, expected)
        path[n] = np.logaddexp(_log_mean(capital), -np.log(day + 2))
    return path


def likely_start(values: Values, days: Days, expected: float) -> int:
    """The day, of those with observations, since which the bets gained most; `values` of shape (n,), n > 0."""
    since = _log_gains(values, expected)[::-1].cumsum(axis=0)[::-1]
    starts, first = np.unique(days, return_index=True)
    return int(starts[(_log_mean(since[first]) - np.log((starts + 1.0) * (starts + 2.0))).argmax()])


def interval(values: Values, day: int, alpha: float = 0.05) -> tuple[float, float]:
    """A confidence interval of the mean of the observations since the day, of shape (n,), n > 0.

    All intervals, of all starting days and at all times, hold together with a probability of 1 - alpha where the mean does not
    change after the starting day: the accuracies that the bets of that day do not refute.
    """
    limit = np.log(2 * (day + 1.0) * (day + 2.0) / alpha)
    return 1 - _upper(1 - values, limit), _upper(values, limit)


def _upper(values: Values, limit: float) -> float:
    """The largest mean that the bets below it do not refute, to six digits."""
    low, high = float(values.mean()), 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = _log_mean(_log_gains(values, middle).sum(axis=0)) >= limit
        low, high = (low, middle) if refuted else (middle, high)
    return high


def _log_gains(values: Values, expected: float | Values) -> Values:
    """The logarithm of what each bet is multiplied by, shape (..., bets): above 0 for errors."""
    values, expected = np.asarray(values)[..., None], np.asarray(expected)[..., None]
    return np.log1p(BETS / (1 - expected) * (expected - values))


def _log_mean(capital: Values) -> Values:
    """The logarithm of the mean over the last axis."""
    return np.asarray(np.logaddexp.reduce(capital, axis=-1) - np.log(capital.shape[-1]))
