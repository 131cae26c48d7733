"""Images that a recipe trains on beside those of the data set: digits as they arrive in the field, and what is no digit."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from digits.images import Images, Labels, Split
from digits.pictures import hard_digits, negatives

NO_DIGIT = 10
"""The label of an image that shows no digit."""


class Synthetic(BaseModel):
    """How many images are made before the training, each as a share of the training images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    negatives: float = Field(0.25, gt=0, le=1, description="Images that show no digit, an eleventh class.")
    coarse: float = Field(0.15, ge=0, le=1, description="Digits that were scanned at a low resolution.")
    cut: float = Field(0.15, ge=0, le=1, description="Digits that were cut from a neighbour that they touch.")


def extend(digits: Split, synthetic: Synthetic, seed: int) -> tuple[Images, Labels]:
    """The images (n, 28, 28) and labels (n,), 10 for no digit, of these digits and of the images that are made of them."""
    random = np.random.default_rng((seed, 2))
    coarse, cut, others = (
        round(share * len(digits)) for share in (synthetic.coarse, synthetic.cut, synthetic.negatives)
    )
    parts = [digits]
    parts += [hard_digits.coarse(digits, coarse, random)] if coarse else []
    parts += [hard_digits.cut(digits, cut, random)] if cut else []
    no_digits = negatives.negatives(digits.images, others, random)
    labels = [*(part.labels for part in parts), np.full(len(no_digits), NO_DIGIT, np.uint8)]
    return np.concatenate([*(part.images for part in parts), no_digits]), np.concatenate(labels)
