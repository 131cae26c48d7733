"""How sure an answer is: which digits cannot be ruled out at a stated coverage, and which answers are better called unsure.

Prediction sets are split conformal (Vovk, Gammerman and Shafer 2005; Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511)
on the validation images: a digit belongs to the set while it is not too much less probable than the answer. The score is the ratio
of the two probabilities, the margin error of Johansson et al. (2017, "Model-agnostic nonconformity functions for conformal
classification") in logits. It never gives an empty set, as 1 - probability (LAC, Sadinle et al. 2019) does on a good model. And a
temperature raises every ratio to one power, which leaves their order and so the sets as they are: that the temperature was fitted on
the same validation images takes nothing from the coverage. Where those also chose the weights (`patience`), the coverage is stated a
little too high.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import Images, Labels

Probabilities = NDArray[np.float32]  # (n, 10)

COVERAGES = (0.995, 0.99, 0.95, 0.9)  # the first that the validation images are enough for is promised
FEWEST_OUTSIDE = 2  # validation images left outside their sets, so that a single mislabelled one does not decide
UNCERTAIN_BELOW = 0.9  # of calibrated confidence: more than one such answer in ten would be wrong
LEAST_CONTRAST = 10  # between the darkest and the lightest of 255; with less, an image is blank


@dataclass(frozen=True)
class ConformalPredictor:
    """What a version knows about its own certainty; it travels on the version's card."""

    coverage: float  # share of images whose true digit is promised to be in the set
    ratio: float  # of a digit's probability to the answer's, from which on it is in the set
    uncertain_below: float  # confidence
    images: int  # that it was calibrated on

    def predict(self, probabilities: Probabilities, images: Images) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which digits cannot be ruled out, (n, 10), and which answers are guesses, (n,).

        On a blank image no digit can be ruled out, whatever the model says.
        """
        most = np.maximum.reduce(probabilities, axis=1, keepdims=True)
        sets, uncertain = probabilities >= self.ratio * most, most[:, 0] < self.uncertain_below
        if len(images) != 1 or _may_be_blank(images):
            nothing = blank(images)
            sets[nothing] = uncertain[nothing] = True
        return sets, uncertain

    def to_card(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


UNCALIBRATED = ConformalPredictor(coverage=1.0, ratio=0.0, uncertain_below=UNCERTAIN_BELOW, images=0)
"""Of a version with too few validation images, or registered without: every set holds all ten digits."""


def calibrate(probabilities: Probabilities, labels: Labels) -> ConformalPredictor:
    """From a model's answers (n, 10) on labelled images that it was not trained on.

    On a new image from where these come from, the true digit is in the set with at least the stated probability, which holds on
    average over validation sets. With k images outside, the coverage itself scatters by about its shortfall over the root of k.
    """
    likely = probabilities[np.arange(len(labels)), labels] / probabilities.max(1)
    for coverage in COVERAGES:
        outside = int((len(labels) + 1) * (1 - coverage) + 1e-9)
        if outside >= FEWEST_OUTSIDE:
            ratio = float(np.sort(likely)[outside - 1])
            return ConformalPredictor(coverage, ratio, UNCERTAIN_BELOW, len(labels))
    return UNCALIBRATED


# For each value the others that are no contrast to it.
_ALIKE = [bytes(range(max(0, value - LEAST_CONTRAST + 1), min(256, value + LEAST_CONTRAST))) for value in range(256)]


def _may_be_blank(image: Images) -> bool:
    """Whether no pixel is a contrast to the first one; a tenth of the time of `blank`, for every request."""
    content = image.tobytes()
    return not content.translate(None, _ALIKE[content[0]])


def blank(images: Images) -> NDArray[np.bool_]:
    """Which images (n, 28, 28) show nothing, (n,)."""
    flat = images.reshape(len(images), -1)
    return np.maximum.reduce(flat, axis=1) - np.minimum.reduce(flat, axis=1) < LEAST_CONTRAST
