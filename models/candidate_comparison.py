"""Measures two versions for the gate: predictions on the same images, size, speed, overlap with training images."""

import hashlib
import io
import statistics
import time
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from digits.data.datasets import digests
from digits.images import Images, Labels, Split
from models import evaluation, gate
from models.model_store import ModelStore, VerifiedModel
from models.onnx_model import InvalidArtifact
from models.registry_reader import NAME

TIMED_IMAGES = 200


@dataclass(frozen=True)
class JudgedModel:
    """A verified version and the digests of its training images."""

    model: VerifiedModel
    size_bytes: int
    trained_on: NDArray[np.uint64]  # sorted or not, one per training image

    @classmethod
    def fetch(cls, store: ModelStore, version: str) -> Self:
        """The version from the registry; raises VersionNotFound, InvalidArtifact or RegistryUnreachable."""
        model = store.fetch_version(version)
        size_bytes = len(store.registry.download(version, "model.onnx"))
        content = store.registry.download(version, "trained_on.npy")
        if hashlib.sha256(content).hexdigest() != model.card["files"].get("trained_on.npy"):
            problem = "the checksum of trained_on.npy is not the one on its card"
            raise InvalidArtifact(f"{NAME} v{version}: {problem}; register it again")
        return cls(model, size_bytes, np.load(io.BytesIO(content), allow_pickle=False))

    def digits(self, images: Images) -> Labels:
        """The most probable digit of each image, (n,)."""
        return self.model.predict_proba(images).argmax(axis=1).astype(np.uint8)

    def accuracy(self, split: Split) -> float:
        """Share of right answers."""
        return float((self.digits(split.images) == split.labels).mean())

    def facts(self, test: Split) -> gate.ModelFacts:
        """What the gate needs besides the predictions."""
        return gate.ModelFacts(
            corruption_accuracy=evaluation.corruption_accuracy(self.model.predict_proba, test),
            size_bytes=self.size_bytes,
            milliseconds=self._milliseconds(test.images),
            trained_on=int(np.isin(digests(test.images), self.trained_on).sum()),
        )

    def _milliseconds(self, images: Images) -> float:
        """Median time of one image at a time."""
        times = []
        for image in images[:TIMED_IMAGES]:
            started = time.perf_counter()
            self.model.predict_proba(image[None])
            times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times)


def sample(name: str, split: Split, candidate: JudgedModel, champion: JudgedModel) -> gate.EvaluationSample:
    """The predictions of both models for the same images."""
    return gate.EvaluationSample(name, split.labels, candidate.digits(split.images), champion.digits(split.images))


def samples(
    test: Split, traffic: Split | None, candidate: JudgedModel, champion: JudgedModel, policy: gate.GatePolicy
) -> list[gate.EvaluationSample]:
    """The test images and, if there is enough of it, the labelled traffic that neither model was trained on."""
    found = [sample("test images", test, candidate, champion)]
    if traffic is not None:
        fresh = ~np.isin(digests(traffic.images), np.concatenate([candidate.trained_on, champion.trained_on]))
        if fresh.sum() >= policy.min_sample:
            unseen = Split(traffic.images[fresh], traffic.labels[fresh])
            found.append(sample("new traffic", unseen, candidate, champion))
    return found
