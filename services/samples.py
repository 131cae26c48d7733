"""The digits that the page offers to try: held-out images of the served version, ten plain and ten hard ones."""

from typing import Any

import numpy as np

from digits.reference import Reference


def choose(reference: Reference) -> list[dict[str, Any]]:
    """For each digit the image that is classified correctly with most confidence, then the ten with least confidence."""
    confidence = reference.probabilities.max(1)
    correct = reference.probabilities.argmax(1) == reference.labels
    # a poor version may classify no image of a digit correctly
    groups = [np.flatnonzero(correct & (reference.labels == digit)) for digit in range(10)]
    plain = [int(group[confidence[group].argmax()]) for group in groups if len(group)]
    hard = [index for index in np.argsort(confidence)[:10].tolist() if index not in plain]
    return [{"image": reference.images[index], "label": reference.labels[index]} for index in plain + hard]
