"""The pixel contract: images are `uint8`, shape `(n, 28, 28)`, 0 = paper, 255 = ink.

Checked at three borders (a file ingested, a request, a log read) and trusted inside.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 28
Images = NDArray[np.uint8]  # (n, 28, 28), 0 = paper, 255 = ink
Labels = NDArray[np.uint8]  # (n,), 0 to 9


def check(images: Any) -> Images:
    """The images themselves; raises ValueError unless they are a `uint8` array of shape (n, 28, 28), n >= 1."""
    if not isinstance(images, np.ndarray):
        raise ValueError(f"expected uint8 images of shape (n, 28, 28), got {type(images).__name__}")
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        raise ValueError(f"expected uint8 images of shape (n, 28, 28), got {images.dtype} {images.shape}")
    return images
