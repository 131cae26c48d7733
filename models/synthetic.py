"""Images that a recipe trains on beside those of the data set: digits as they arrive in the field, and what is no digit."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from digits.data.datasets import join
from digits.images import NO_DIGIT, Images, Labels, Split
from digits.pictures import hard_digits, negatives


class Synthetic(BaseModel):
    """How many images are made before the training, each as a share of the training images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    styled: float = Field(0.05, gt=0, le=1, description="Digits of styles that MNIST's writers seldom use.")
    coarse: float = Field(
        0.1, gt=0, le=1, description="Digits that were scanned at a low resolution, half of them styled ones."
    )
    cut: float = Field(0.1, gt=0, le=1, description="Digits that were cut from a neighbour that they touch.")
    negatives: float = Field(0.15, gt=0, le=1, description="Images that show no digit, an eleventh class.")


@dataclass(frozen=True)
class TrainingImages:
    """The digits of a data set and what is made for the training."""

    digits: Split
    hard: Split  # digits as they arrive in the field
    no_digits: Images

    def __len__(self) -> int:
        return len(self.digits) + len(self.hard) + len(self.no_digits)

    def of_epoch(self, progress: float, random: np.random.Generator) -> tuple[Images, Labels]:
        """Images (n, 28, 28) and labels (n,), 10 for no digit; `progress` goes from 0 in the first epoch to 1 in the last.

        Digits of the data set gradually take the place of the hard ones: hard digits teach what a digit may look like, those of the data
        set what digits usually look like.
        """
        kept = random.random(len(self.hard)) >= progress
        others = random.integers(len(self.digits), size=len(self.hard))
        images = np.where(kept[:, None, None], self.hard.images, self.digits.images[others])
        labels = np.where(kept, self.hard.labels, self.digits.labels[others])
        no_digit = np.full(len(self.no_digits), NO_DIGIT, np.uint8)
        return np.concatenate([self.digits.images, images, self.no_digits]), np.concatenate(
            [self.digits.labels, labels, no_digit]
        )


def made(digits: Split, synthetic: Synthetic, seed: int) -> TrainingImages:
    """These digits with what is made of them, in the recipe's shares."""
    random = np.random.default_rng((seed, 2))
    counts = {name: round(share * len(digits)) for name, share in synthetic}
    styled = hard_digits.styled(counts["styled"], random)
    half = counts["coarse"] // 2
    coarse = hard_digits.coarse(digits, half, random), hard_digits.coarse(styled, counts["coarse"] - half, random)
    hard = join(styled, *coarse, hard_digits.cut(digits, counts["cut"], random))
    return TrainingImages(digits, hard, negatives.negatives(digits.images, counts["negatives"], random))
