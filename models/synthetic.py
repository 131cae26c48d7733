"""Images that a recipe trains on beside those of the data set: digits as they arrive in the field, and what is no digit."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from digits.data.datasets import join
from digits.images import Images, Labels, Split
from digits.pictures import hard_digits, negatives

NO_DIGIT = 10
"""The label of an image that shows no digit."""


class Synthetic(BaseModel):
    """How many images are made before the training, each as a share of the training images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    styled: float = Field(0.05, gt=0, le=1, description="Digits of styles that MNIST's writers seldom use.")
    coarse: float = Field(
        0.1, gt=0, le=1, description="Digits that were scanned at a low resolution, half of them styled ones."
    )
    cut: float = Field(0.1, gt=0, le=1, description="Digits that were cut from a neighbour that they touch.")
    negatives: float = Field(0.15, gt=0, le=1, description="Images that show no digit, an eleventh class.")


def extend(digits: Split, synthetic: Synthetic, seed: int) -> tuple[Images, Labels]:
    """The images (n, 28, 28) and labels (n,), 10 for no digit, of these digits and of the images that are made of them."""
    random = np.random.default_rng((seed, 2))
    counts = {name: round(share * len(digits)) for name, share in synthetic}
    styled = hard_digits.styled(counts["styled"], random)
    half = counts["coarse"] // 2
    coarse = hard_digits.coarse(digits, half, random), hard_digits.coarse(styled, counts["coarse"] - half, random)
    made = join(digits, styled, *coarse, hard_digits.cut(digits, counts["cut"], random))
    others = negatives.negatives(digits.images, counts["negatives"], random)
    labels = np.append(made.labels, np.full(len(others), NO_DIGIT, np.uint8))
    return np.concatenate([made.images, others]), labels
