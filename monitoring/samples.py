"""Samples that are compared: images, a version's answers for them, who sent them and in which form."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from digits.images import Images
from digits.reference import Reference
from digits.storage.predictions import PredictionWindow

PICTURE_ROUTES = ("/classify_file", "/read")  # their images come from a decoder, which leaves its mark on them
# A version's probabilities (n, 10) for images (n, 28, 28), and which of them show no digit (n,): None where it has no digit score.
PredictWithRejection = Callable[[Images], tuple[NDArray[np.float32], NDArray[np.bool_] | None]]
MIN_MATCHED = 100  # images of both routes together that a sample must be able to supply


@dataclass(frozen=True, eq=False)
class Sample:
    """Images and the answers of one version; every array has length n."""

    images: Images  # (n, 28, 28)
    probabilities: NDArray[np.float32]  # (n, 10)
    clients: NDArray[np.str_]  # (n,), who sent each image, "" where unknown
    is_picture: NDArray[np.bool_]  # (n,), whether the image was decoded from a picture file
    no_digit: NDArray[np.bool_] | None = (
        None  # (n,), whether the image shows no digit; None where the version cannot tell
    )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> "Sample":
        no_digit = None if self.no_digit is None else self.no_digit[rows]
        return Sample(self.images[rows], self.probabilities[rows], self.clients[rows], self.is_picture[rows], no_digit)


class Repeats(BaseModel, frozen=True):
    """Answers to identical images, as an uptime probe sends them; each image counts once."""

    answers: int = 0  # that were left out
    most: int = 0  # answers to the most frequent image
    share: float = 0.0  # of all answers that were given to the most frequent image


def of_reference(reference: Reference) -> Sample:
    return of_images(reference.images, reference.probabilities)


def of_images(
    images: Images,
    probabilities: NDArray[np.float32],
    is_picture: bool = False,
    no_digit: NDArray[np.bool_] | None = None,
) -> Sample:
    """Images whose senders are unknown."""
    return Sample(images, probabilities, np.full(len(images), ""), np.full(len(images), is_picture), no_digit)


def answered(images: Images, predict: PredictWithRejection, is_picture: bool = False) -> Sample:
    """Images whose senders are unknown, with what a version answers now."""
    probabilities, no_digit = predict(images)
    return of_images(images, probabilities, is_picture, no_digit)


def of_window(window: PredictionWindow, digit_threshold: float | None = None) -> Sample:
    """Logged answers; the threshold is that of the version that gave all of them."""
    routes = np.isin(np.array(window.routes, np.str_), PICTURE_ROUTES)
    no_digit = None if digit_threshold is None else window.digit_scores < digit_threshold
    return Sample(window.images, window.probabilities, np.array(window.clients, np.str_), routes, no_digit)


def distinct(sample: Sample) -> tuple[Sample, Repeats]:
    """The first answer to each image, and how many repeat it."""
    contents = [image.tobytes() for image in sample.images]
    first = {content: row for row, content in reversed(list(enumerate(contents)))}
    most = max(Counter(contents).values(), default=0)
    repeats = Repeats(answers=len(contents) - len(first), most=most, share=most / max(len(contents), 1))
    return sample.take(np.array(sorted(first.values()), np.int64)), repeats


def match_routes(window: Sample, *preferred: tuple[Sample, Sample]) -> Sample:
    """As many images as there are for the window's share of pictures, the same ones every time.

    Pixels and pictures are each taken from the first pair that has enough of them, else from the last.
    """
    share = float(window.is_picture.mean()) if len(window) else 0.0
    shares = 1 - share, share
    pools = [
        next((pool for pool in candidates if len(pool) >= wanted * MIN_MATCHED), candidates[-1])
        for wanted, candidates in zip(shares, zip(*preferred, strict=True), strict=True)
    ]
    count = min(int(len(pool) / wanted) for pool, wanted in zip(pools, shares, strict=True) if wanted > 0)
    return join(*(_draw(pool, round(wanted * count)) for pool, wanted in zip(pools, shares, strict=True)))


def split_routes(sample: Sample) -> tuple[Sample, Sample]:
    """The images that came as pixels, and those that came as pictures."""
    return sample.take(~sample.is_picture), sample.take(sample.is_picture)


def _draw(sample: Sample, count: int) -> Sample:
    return sample.take(np.sort(np.random.default_rng(0).permutation(len(sample))[:count]))


def join(*samples: Sample) -> Sample:
    """All images, in this order."""
    columns: Sequence[str] = ("images", "probabilities", "clients", "is_picture")
    known = [sample.no_digit for sample in samples if sample.no_digit is not None]
    no_digit = np.concatenate(known) if len(known) == len(samples) else None
    images, probabilities, clients, is_picture = (
        np.concatenate([getattr(sample, column) for sample in samples]) for column in columns
    )
    return Sample(images, probabilities, clients, is_picture, no_digit)
