"""How images are assigned to the training, validation and test part: by a hash of their content, or by a stratified drawing."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import Split

# Shares of a source without a test part.
TEST_SHARE = 0.15
VALIDATION_SHARE = 0.15
TRAIN, VALIDATION, TEST = range(3)


def by_content(split: Split, writers: NDArray[Any] | None, seed: int) -> list[NDArray[np.intp]]:
    """The rows of the training, validation and test part, assigned by a hash of each image, or of its writer where `writers` has one.

    The part depends on the image (or its writer) and the seed alone: it is the same when the source grows, and the same for
    identical images, whatever their labels. Only of a digit that a part would lack are some images moved: to the test part those
    with the smallest hash, to validation those with the next, to the training part those with the largest. The rows are
    in the order of the images' hashes, and so independent of the order in the source.
    """
    hashes = hash_fractions((image.tobytes() for image in split.images), seed)
    groups = hashes
    if writers is not None:
        by_writer = hash_fractions((str(writer).encode() for writer in writers), seed)
        groups = np.where(writers.astype(str) == "", hashes, by_writer)
    values, group = np.unique(groups, return_inverse=True)
    part = np.select([values < TEST_SHARE, values < TEST_SHARE + VALIDATION_SHARE], [TEST, VALIDATION], TRAIN)
    for digit in range(10):
        own = np.unique(group[split.labels == digit])
        for wanted, place in ((TEST, 0), (TRAIN, -1), (VALIDATION, 1)):
            if len(own) > 1 and wanted not in part[own]:
                part[own[place]] = wanted
    order = np.lexsort((split.labels, hashes))
    return [order[part[group][order] == wanted] for wanted in (TRAIN, VALIDATION, TEST)]


def hash_fractions(keys: Iterable[bytes], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each key, (n,), that depends on the key and the seed alone."""
    digests = (hashlib.sha256(f"{seed} ".encode() + key).digest() for key in keys)
    return np.array([int.from_bytes(digest[:6]) / 2**48 for digest in digests])


def draw(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """The rest and a stratified sample of `round(share * n)` images, both in the order of `split`.

    The largest remainders round up; of a digit with two images or more, at least one is drawn. scikit-learn's
    train_test_split draws other images, and so would change every fingerprint.
    """
    counts = np.array(split.counts())
    exact = counts * (round(share * len(split)) / len(split))
    wanted = np.maximum(np.floor(exact).astype(int), np.minimum(counts // 2, 1))
    missing = max(round(share * len(split)) - int(wanted.sum()), 0)
    wanted[np.argsort(wanted - exact, kind="stable")[:missing]] += 1
    order = np.random.default_rng(seed).permutation(len(split))
    drawn = np.zeros(len(split), dtype=bool)
    for digit, number in enumerate(wanted):
        drawn[order[split.labels[order] == digit][:number]] = True
    return pick(split, ~drawn), pick(split, drawn)


def pick(split: Split, rows: Any) -> Split:
    """The images at these rows: numbers or a mask, at least one."""
    return Split(split.images[rows], split.labels[rows])
