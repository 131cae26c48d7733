"""The only use of `evidently.legacy`: drift scores of our own, for which Evidently 0.7 has no other interface."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def register_score(
    name: str, title: str, numeric: bool, score: Callable[[NDArray[np.float64], NDArray[np.float64]], float]
) -> None:
    """Make a score (reference, current) available as `method` of `ValueDrift`; a second registration replaces the first."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def compare(reference: Any, current: Any, _type: Any, threshold: float) -> tuple[float, bool]:
        value = score(reference.to_numpy().astype(float), current.to_numpy().astype(float))
        return value, value > threshold

    test = StatTest(name, title, [ColumnType.Numerical if numeric else ColumnType.Categorical])
    register_stattest(test, compare)
