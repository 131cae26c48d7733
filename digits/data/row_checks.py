"""Checks of single rows of a source: images that show no digit on paper, and labels that contradict each other or the champion."""

import numpy as np
from numpy.typing import NDArray

from digits.images import Images, PredictProba, Split

MIN_INK = 64  # the brightest pixel of real data is 255; images scaled to 0..1 or 0..16 stay below this
MAX_PAPER = 127  # the median of the border; 0 in all of MNIST, 255 in inverted images
# Correlation of neighbouring pixels: at least 0.32 in MNIST, with added noise of standard deviation 80 in 99.9 % at least 0.18; in 99 % of
# images of noise alone at most 0.13.
MIN_CORRELATION = 0.2
CONFIDENT = 0.99  # a probability of the champion from which its digit is held against the label
BATCH_SIZE = 5_000


def image_faults(images: Images) -> dict[int, str]:
    """The reason for each row that is blank, faint, inverted or noise."""
    faults: dict[int, str] = {}
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        ink = batch.max(axis=(1, 2))
        border = np.concatenate([batch[:, 0], batch[:, -1], batch[:, :, 0], batch[:, :, -1]], axis=1)
        paper = np.median(border, axis=1).astype(int)
        noise = _correlation(batch) < MIN_CORRELATION
        for row in np.flatnonzero((ink < MIN_INK) | (paper > MAX_PAPER) | noise).tolist():
            faults[start + row] = _image_fault(int(ink[row]), int(paper[row]))
    return faults


def _image_fault(ink: int, paper: int) -> str:
    if ink == 0:
        return "is blank, expected the ink of a digit"
    if ink < MIN_INK:
        return f"has a largest value of {ink}, expected ink up to 255; scale it first"
    if paper > MAX_PAPER:
        return f"has a border of mostly {paper}, expected paper to be 0; subtract it from 255 first"
    return "is noise: neighbouring pixels are unrelated, expected the strokes of a digit"


def _correlation(images: Images) -> NDArray[np.float32]:
    """The larger correlation of each pixel with its right or lower neighbour in the box that holds the ink, (n,); 1 in a solid box."""
    ink = images >= MIN_INK
    rows, columns = (_between(np.any(ink, axis=axis)) for axis in (2, 1))
    box = rows[:, :, None] & columns[:, None, :]
    area = np.maximum(box.sum(axis=(1, 2), keepdims=True), 1)
    centred = images.astype(np.float32)
    centred = (centred - (centred * box).sum(axis=(1, 2), keepdims=True) / area) * box
    right = np.einsum("nij,nij->n", centred[:, :, 1:], centred[:, :, :-1])
    down = np.einsum("nij,nij->n", centred[:, 1:], centred[:, :-1])
    variance = np.einsum("nij,nij->n", centred, centred)
    return np.divide(np.maximum(right, down), variance, out=np.ones_like(variance), where=variance > 0)


def _between(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True from the first to the last True of each row."""
    return np.logical_or.accumulate(marked, axis=1) & np.logical_or.accumulate(marked[:, ::-1], axis=1)[:, ::-1]


def contradictory_labels(split: Split) -> dict[int, str]:
    """The reason for each row whose image is there again with another label."""
    digits_of: dict[bytes, set[int]] = {}
    keys = [image.tobytes() for image in split.images]
    for key, label in zip(keys, split.labels.tolist(), strict=True):
        digits_of.setdefault(key, set()).add(label)
    return {
        row: f"is the same image as another row, with the labels {' and '.join(map(str, sorted(digits_of[key])))}"
        for row, key in enumerate(keys)
        if len(digits_of[key]) > 1
    }


def contradicted_labels(split: Split, predict_proba: PredictProba) -> dict[int, str]:
    """The reason for each row whose label the champion contradicts with a probability of at least `CONFIDENT`."""
    probabilities = predict_proba(split.images)
    digits, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    return {
        row: f"is labelled {split.labels[row]}, and the champion reads {digits[row]} ({confidence[row]:.1%})"
        for row in np.flatnonzero((digits != split.labels) & (confidence >= CONFIDENT)).tolist()
    }
