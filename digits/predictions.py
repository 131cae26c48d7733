"""The prediction log: one record per answer, labelled later by feedback, read back in windows."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from digits.images import Images, Labels


@dataclass(frozen=True)
class Window:
    """Answers of a stretch of time, oldest first; every array has length n."""

    ids: list[str]
    at: list[datetime]  # UTC
    versions: list[str]
    images: Images  # (n, 28, 28)
    digits: Labels  # (n,), what was answered
    probabilities: NDArray[np.float32]  # (n, 10)
    labels: NDArray[np.int8]  # (n,), the true digit where feedback told it, else -1

    def __len__(self) -> int:
        return len(self.ids)
