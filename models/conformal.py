"""Uncertainty of a prediction: its set of possible digits at a stated coverage, and a flag for low confidence.

The sets are split conformal, calibrated on the validation images (Vovk, Gammerman and Shafer 2005; Angelopoulos and Bates
2021, https://arxiv.org/abs/2107.07511), and class-conditional (Vovk 2012, "Conditional validity of inductive conformal
predictors"): each digit has a threshold of its own, from the validation images of this digit. With one threshold for all,
hard digits are covered less often than stated and easy ones more often. A digit is in the set if the ratio of its
probability to the largest one reaches its threshold. In logits, this score is the margin error of Johansson et al. (2017,
"Model-agnostic nonconformity functions for conformal classification"). Unlike 1 - probability (LAC, Sadinle et al. 2019) it
never gives an empty set. A temperature keeps the order of the ratios, so fitting it on the same images does not change the
coverage. With `patience`, the same images chose the weights too, and the stated coverage is slightly too high.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from digits.images import Images, Labels

Probabilities = NDArray[np.float32]  # (n, 10)

# A version states the first of these for which it has enough validation images of each digit.
COVERAGES = (0.995, 0.99, 0.95, 0.9)
MIN_OUTSIDE = 2  # validation images of a digit outside their sets; a single one may be mislabelled
UNCERTAIN_BELOW = 0.9  # calibrated confidence, below which more than one prediction in ten is wrong
MIN_CONTRAST = 10  # between the darkest and the lightest pixel; an image with less is blank


@dataclass(frozen=True)
class ConformalPredictor:
    """The calibrated thresholds of a version, stored on its card."""

    coverage: float  # for each digit, share of its images with the digit in the set
    ratios: tuple[float, ...]  # for each digit, the smallest ratio of its probability to the largest that is in the set
    uncertain_below: float  # confidence
    images: int  # that it was calibrated on

    def __post_init__(self) -> None:
        if len(self.ratios) != 10:
            raise ValueError(f"expected the thresholds of ten digits, got {len(self.ratios)}; train the version again")

    def predict(self, probabilities: Probabilities, images: Images) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which digits are in each set, (n, 10), and which predictions are uncertain, (n,); blank images get all digits."""
        most = np.maximum.reduce(probabilities, axis=1, keepdims=True)
        sets, uncertain = probabilities >= self._thresholds * most, most[:, 0] < self.uncertain_below
        if len(images) != 1 or _may_be_blank(images):
            nothing = blank(images)
            sets[nothing] = uncertain[nothing] = True
        return sets, uncertain

    @cached_property
    def _thresholds(self) -> NDArray[np.float32]:
        return np.array(self.ratios, np.float32)


UNCALIBRATED = ConformalPredictor(coverage=1.0, ratios=(0.0,) * 10, uncertain_below=UNCERTAIN_BELOW, images=0)
"""For a version without enough validation images of each digit: every set has all ten digits."""


def calibrate(probabilities: Probabilities, labels: Labels) -> ConformalPredictor:
    """Thresholds from probabilities (n, 10) of labelled images that the model was not trained on.

    For a new image of any digit from the same source, the set has the digit with at least the stated coverage, on average over
    validation sets. For a digit with k validation images outside, the standard deviation of its coverage is about
    (1 - coverage) / sqrt(k).
    """
    likely = probabilities[np.arange(len(labels)), labels] / probabilities.max(1)
    scores = [np.sort(likely[labels == digit]) for digit in range(10)]
    for coverage in COVERAGES:
        outside = [int((len(ordered) + 1) * (1 - coverage) + 1e-9) for ordered in scores]
        if min(outside) >= MIN_OUTSIDE:
            ratios = tuple(float(ordered[count - 1]) for ordered, count in zip(scores, outside, strict=True))
            return ConformalPredictor(coverage, ratios, UNCERTAIN_BELOW, len(labels))
    return UNCALIBRATED


# For each pixel value, those within the contrast of a blank image.
_ALIKE = [bytes(range(max(0, value - MIN_CONTRAST + 1), min(256, value + MIN_CONTRAST))) for value in range(256)]


def _may_be_blank(image: Images) -> bool:
    """Whether all pixels are close to the first one; takes a tenth of the time of `blank`."""
    content = image.tobytes()
    return not content.translate(None, _ALIKE[content[0]])


def blank(images: Images) -> NDArray[np.bool_]:
    """Which images (n, 28, 28) are blank, (n,)."""
    flat = images.reshape(len(images), -1)
    return np.maximum.reduce(flat, axis=1) - np.minimum.reduce(flat, axis=1) < MIN_CONTRAST
