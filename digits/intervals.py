"""A share of right answers, which says little without its interval; counted the same in training and in monitoring."""

import math

from pydantic import BaseModel, ConfigDict

Z = 1.959964  # 95 % of a normal distribution lies within


class Proportion(BaseModel):
    """Right answers among some, with a 95 % interval."""

    model_config = ConfigDict(frozen=True)

    right: int
    count: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def wilson(right: int, count: int) -> Proportion:
    """So many of so many, at least one, with Wilson's score interval (J. Am. Stat. Assoc. 22, 1927)."""
    value = right / count
    middle = (value + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(value * (1 - value) / count + Z**2 / (4 * count**2))
    low = min(max(middle - half, 0.0), value)  # rounding alone can put 0 of n above 0
    return Proportion(right=right, count=count, value=value, low=low, high=max(min(middle + half, 1.0), value))
