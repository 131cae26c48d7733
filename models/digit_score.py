"""Whether an image shows a digit: the score that the model gives it, against the threshold of its version.

The threshold is a quantile of the scores of validation digits, so the share of digits that are flagged is known in advance, as for
a conformal p-value (Bates et al. 2023, "Testing for outliers with conformal p-values").
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAGGED_SHARE = 0.002
"""Of digits from the source of the validation images; other writers and pictures have more."""


def calibrate(digit_scores: NDArray[np.float32]) -> float | None:
    """The score below which an image is no digit, from the scores (n,) of digits that the model was not trained on.

    None for fewer than 499 of them: no threshold would flag at most 0.2 % of further digits.
    """
    allowed = int((len(digit_scores) + 1) * FLAGGED_SHARE + 1e-9)
    return float(np.sort(digit_scores)[allowed - 1]) if allowed else None


def is_digit(digit_scores: NDArray[np.float32], threshold: float | None) -> NDArray[np.bool_]:
    """Which images, (n,), show a digit; all of them where the version has no threshold or the model no score."""
    reached: NDArray[Any] = ~(digit_scores < (-np.inf if threshold is None else threshold))
    return reached
