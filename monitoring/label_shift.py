"""Label shift: digits whose shares differ from the reference, while each digit still looks the same."""

import numpy as np
from numpy.typing import NDArray

from digits.images import Labels

Digits = Labels | NDArray[np.float64]  # (n,), 0 to 9


def shares(digits: Digits) -> NDArray[np.float64]:
    """The share of each digit, shape (10,)."""
    return np.bincount(digits.astype(int), minlength=10) / len(digits)


def change(reference: Digits, current: Digits) -> NDArray[np.float64]:
    """By how much the share of each digit differs from the reference, shape (10,)."""
    return shares(current) - shares(reference)


def importance_weights(reference: Digits, current: Digits) -> NDArray[np.float64]:
    """Weights of the reference that give every digit its current share, shape (n,); all 1 if no digit is in both."""
    known = shares(reference)
    ratios = np.divide(shares(current), known, out=np.zeros(10), where=known > 0)
    weights = ratios[reference.astype(int)]
    return weights if weights.any() else np.ones(len(reference))


def oversample(labels: Labels, digit: int, factor: float, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Indices of a sample with replacement in which one digit has `factor` times its share of the labels."""
    share = np.mean(labels == digit)
    if not 0 < share * factor < 1:
        raise ValueError(f"cannot sample {factor} times the share {share:.3f} of digit {digit}")
    weights = np.where(labels == digit, factor, (1 - share * factor) / (1 - share))
    return random.choice(len(labels), count, p=weights / weights.sum())
