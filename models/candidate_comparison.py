"""What the gate has to know of two versions: their answers on the same images, their size, their speed, what they trained on."""

import hashlib
import io
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from digits.data.datasets import Split, digests
from digits.images import Images, Labels
from digits.storage.feedback import Record
from models import champion, evaluation, gate
from models.champion import Champion

TIMED_IMAGES = 200


@dataclass(frozen=True)
class Contestant:
    """A verified version and the digests of its training images."""

    model: Champion
    size_bytes: int
    trained_on: NDArray[np.uint64]  # sorted or not, one per training image

    @classmethod
    def fetch(cls, uri: str, version: str, cache: Path) -> Self:
        """The version from the registry; raises champion.NoChampion, BadArtifact or Unreachable."""
        model = champion.fetch_version(uri, version, cache)
        size_bytes = len(champion.download(uri, version, "model.onnx"))
        content = champion.download(uri, version, "trained_on.npy")
        if hashlib.sha256(content).hexdigest() != model.card["files"].get("trained_on.npy"):
            raise champion.BadArtifact(
                f"{champion.NAME} v{version}: the checksum of trained_on.npy is not the one on its card; register it again"
            )
        return cls(model, size_bytes, np.load(io.BytesIO(content), allow_pickle=False))

    def digits(self, images: Images) -> Labels:
        """The most probable digit of each image, (n,)."""
        return self.model.answer(images).argmax(axis=1).astype(np.uint8)

    def accuracy(self, split: Split) -> float:
        """Share of right answers."""
        return float((self.digits(split.images) == split.labels).mean())

    def facts(self, test: Split) -> gate.Facts:
        """Everything but the answers themselves."""
        return gate.Facts(
            corruption_accuracy=evaluation.corruption_accuracy(self.model.answer, test),
            size_bytes=self.size_bytes,
            milliseconds=self._milliseconds(test.images),
            trained_on=int(np.isin(digests(test.images), self.trained_on).sum()),
        )

    def _milliseconds(self, images: Images) -> float:
        """Median time of one image at a time."""
        times = []
        for image in images[:TIMED_IMAGES]:
            started = time.perf_counter()
            self.model.answer(image[None])
            times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times)


def sample(name: str, split: Split, candidate: Contestant, champion: Contestant) -> gate.Sample:
    """Both on the same images."""
    return gate.Sample(name, split.labels, candidate.digits(split.images), champion.digits(split.images))


def samples(
    test: Split,
    traffic: Split | None,
    record: Record | None,
    candidate: Contestant,
    champion: Contestant,
    policy: gate.Policy,
) -> list[gate.Sample]:
    """The test images, and where there are enough of them the labelled traffic held out and the candidate's shadow record.

    Traffic that one of the two trained on (it may have come through the inbox too) is left out.
    """
    found = [sample("test images", test, candidate, champion)]
    if traffic is not None:
        fresh = _untrained(traffic.images, candidate, champion)
        if fresh.sum() >= policy.smallest_sample:
            found.append(
                sample("new traffic", Split(traffic.images[fresh], traffic.labels[fresh]), candidate, champion)
            )
    if record is not None:
        fresh = _untrained(record.images, candidate, champion)
        if fresh.sum() >= policy.smallest_sample:
            answers = (record.labels[fresh], record.challenger[fresh], record.champion[fresh])
            found.append(gate.Sample("shadow record", *answers))
    return found


def _untrained(images: Images, *contestants: Contestant) -> NDArray[np.bool_]:
    """Which images neither trained on, (n,)."""
    known = np.concatenate([contestant.trained_on for contestant in contestants])
    return ~np.isin(digests(images), known)
