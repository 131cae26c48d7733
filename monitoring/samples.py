"""Samples that are compared: images, a version's answers for them, who sent them and in which form."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from digits.images import Images
from digits.reference import Reference
from digits.storage.predictions import PredictionWindow

PICTURE_ROUTES = ("/classify_file", "/read")  # their images come from a decoder, which leaves its mark on them
MIN_MATCHED = 100  # images of both routes together that a sample must be able to supply


@dataclass(frozen=True, eq=False)
class Sample:
    """Images and the answers of one version; every array has length n."""

    images: Images  # (n, 28, 28)
    probabilities: NDArray[np.float32]  # (n, 10)
    clients: NDArray[np.str_]  # (n,), who sent each image, "" where unknown
    is_picture: NDArray[np.bool_]  # (n,), whether the image was decoded from a picture file

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> "Sample":
        return Sample(self.images[rows], self.probabilities[rows], self.clients[rows], self.is_picture[rows])


class Repeats(BaseModel, frozen=True):
    """Answers to identical images, as an uptime probe sends them; each image counts once."""

    answers: int = 0  # that were left out
    most: int = 0  # answers to the most frequent image
    share: float = 0.0  # of all answers that were given to the most frequent image


def of_reference(reference: Reference) -> Sample:
    return of_images(reference.images, reference.probabilities)


def of_images(images: Images, probabilities: NDArray[np.float32], is_picture: bool = False) -> Sample:
    """Images whose senders are unknown."""
    return Sample(images, probabilities, np.full(len(images), ""), np.full(len(images), is_picture))


def of_window(window: PredictionWindow) -> Sample:
    routes = np.isin(np.array(window.routes, np.str_), PICTURE_ROUTES)
    return Sample(window.images, window.probabilities, np.array(window.clients, np.str_), routes)


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
    return Sample(*(np.concatenate([getattr(sample, column) for sample in samples]) for column in columns))
