"""Proportions with their confidence intervals, computed the same way in training and in monitoring."""

from pydantic import BaseModel


class Proportion(BaseModel, frozen=True):
    """A number of correct answers among some, with a 95 % interval."""

    right: int
    count: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def wilson(right: int, count: int) -> Proportion:
    """`right` of `count`, at least one, with Wilson's score interval (J. Am. Stat. Assoc. 22, 1927)."""
    from scipy.stats import binomtest  # 1 s to import, and not installed where the service runs

    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return Proportion(right=right, count=count, value=right / count, low=interval.low, high=interval.high)


def lower_bound(right: int, count: int, alpha: float) -> float:
    """What the true proportion falls below with a probability of at most alpha: exact (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy.stats import binomtest  # as above

    return float(binomtest(right, count).proportion_ci(1 - 2 * alpha, method="exact").low)
