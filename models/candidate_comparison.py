"""Compares a candidate with the champion for the gate: predictions on the same images, size, speed, overlap with training images."""

import io
import statistics
import timeit
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from digits.data.datasets import digests
from digits.images import Labels, Split
from models import evaluation, gate
from models.gate import GatePolicy, GateVerdict
from models.model_store import ModelStore, VerifiedModel

TIMED_IMAGES = 200


@dataclass(frozen=True)
class JudgedModel:
    """A verified version and the digests of its training images."""

    model: VerifiedModel
    training_digests: NDArray[np.uint64]  # sorted or not, one per training image

    def facts(self, test: Split) -> gate.ModelFacts:
        """What the gate needs besides the predictions."""
        calls = [partial(self.model.predict_proba, image[None]) for image in test.images[:TIMED_IMAGES]]
        return gate.ModelFacts(
            corruption_accuracy=evaluation.corruption_accuracy(self.model.predict_proba, test),
            size_bytes=len(self.model.model.content),
            milliseconds=1000 * statistics.median(timeit.timeit(call, number=1) for call in calls),
            images_trained_on=int(np.isin(digests(test.images), self.training_digests).sum()),
        )

    def answers(self, split: Split) -> Labels:
        """The most probable digit of each image, (n,)."""
        return self.model.predict_proba(split.images).argmax(axis=1).astype(np.uint8)


def fetch(store: ModelStore, version: str) -> JudgedModel:
    """The version from the registry; raises VersionNotFound, InvalidArtifact or RegistryUnreachable."""
    model = store.fetch_version(version)
    training_digests = np.load(io.BytesIO(store.download(model, "trained_on.npy")), allow_pickle=False)
    return JudgedModel(model, training_digests)


def judge(
    store: ModelStore,
    version: str,
    current: str | None,
    test: Split,
    traffic: Split | None,
    floor: float,
    policy: GatePolicy,
    significance: float,
) -> GateVerdict:
    """Compare a candidate with the current champion, if there is one, on the test images and on labelled traffic."""
    candidate = fetch(store, version)
    if current is None:
        accuracy = float((candidate.answers(test) == test.labels).mean())
        return gate.judge_first(accuracy, floor, candidate.facts(test), policy)
    champion = fetch(store, current)
    compared = samples(test, traffic, candidate, champion, policy)
    return gate.judge(compared, candidate.facts(test), champion.facts(test), policy, significance)


def samples(
    test: Split, traffic: Split | None, candidate: JudgedModel, champion: JudgedModel, policy: GatePolicy
) -> list[gate.EvaluationSample]:
    """The test images and, if there is enough of it, the labelled traffic that neither model was trained on."""
    splits = {"test images": test}
    if traffic is not None:
        known = np.concatenate([candidate.training_digests, champion.training_digests])
        fresh = ~np.isin(digests(traffic.images), known)
        if fresh.sum() >= policy.min_sample:
            splits["new traffic"] = Split(traffic.images[fresh], traffic.labels[fresh])
    return [
        gate.EvaluationSample(name, split.labels, candidate.answers(split), champion.answers(split))
        for name, split in splits.items()
    ]
