"""The only use of `evidently.legacy`: drift scores of our own, for which Evidently 0.7 has no other interface."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Score = Callable[[NDArray[np.float64], NDArray[np.float64]], float]  # of reference and current


def register_score(name: str, title: str, numeric: Score, categorical: Score) -> None:
    """Make these scores available as `method` of `ValueDrift`; a second registration replaces the first."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def compare(reference: Any, current: Any, kind: Any, threshold: float) -> tuple[float, bool]:
        score = numeric if kind == ColumnType.Numerical else categorical
        value = score(reference.to_numpy().astype(float), current.to_numpy().astype(float))
        return value, value > threshold

    register_stattest(StatTest(name, title, [ColumnType.Numerical, ColumnType.Categorical]), compare)
