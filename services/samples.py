"""The digits that the page offers to try: held-out images of the version that answers, ten plain and ten hard ones."""

from typing import Any

import numpy as np

from digits.reference import Reference


def choose(reference: Reference) -> list[dict[str, Any]]:
    """One image of each digit that the version answers rightly and with most confidence, then the ten it is least sure of."""
    confidence = reference.probabilities.max(1)
    right = reference.probabilities.argmax(1) == reference.labels
    plain = [_surest(np.flatnonzero(right & (reference.labels == digit)), confidence) for digit in range(10)]
    hard = np.argsort(confidence)[:10].tolist()
    chosen = [*(index for index in plain if index is not None), *(index for index in hard if index not in plain)]
    return [{"image": reference.images[index], "label": reference.labels[index]} for index in chosen]


def _surest(candidates: np.ndarray[Any, np.dtype[np.int_]], confidence: np.ndarray[Any, Any]) -> int | None:
    """None where a poor version answers no image of a digit rightly."""
    return int(candidates[confidence[candidates].argmax()]) if len(candidates) else None
