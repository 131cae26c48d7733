"""Which pixels spoke for an answer: how much its probability falls where paper covers them.

Occlusion sensitivity (Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901). Paper over paper changes nothing, so only the patches
that cover ink are classified.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images

PATCH, STRIDE = 6, 2  # pixels of the patch's side, and from one place of it to the next
# Every pixel lies under (PATCH / STRIDE)² patches, those at the edge of the image too.
_STARTS = range(STRIDE - PATCH, SIZE, STRIDE)

Predict = Callable[[Images], NDArray[np.float32]]


def occlusion_map(
    image: NDArray[np.uint8], digit: int, probability: float, predict_proba: Predict
) -> NDArray[np.float32]:
    """For each pixel (28, 28) the fall of this digit's probability, mean of the patches that cover it; below 0 where it rises.

    `predict_proba` gives the probabilities (n, 10) of images (n, 28, 28), of 256 of them at most.
    """
    places = [
        np.s_[max(0, top) : top + PATCH, max(0, left) : left + PATCH]
        for top in _STARTS
        for left in _STARTS
        if image[max(0, top) : top + PATCH, max(0, left) : left + PATCH].any()
    ]
    total = np.zeros((SIZE, SIZE), np.float32)
    if places:
        covered = np.repeat(image[None], len(places), axis=0)
        for one, place in zip(covered, places, strict=True):
            one[place] = 0
        falls = np.float32(probability) - predict_proba(covered)[:, digit]
        for fall, place in zip(falls, places, strict=True):
            total[place] += fall
    return total / np.float32((PATCH // STRIDE) ** 2)
