"""Compares a candidate with the champion for the gate: predictions on the same images, size, speed, overlap with training images."""

import logging
import statistics
import timeit
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from digits.data.datasets import digests
from digits.images import Images, Labels
from models import corruption_weights, evaluation, evaluation_sets, gate
from models.evaluation_sets import CANDIDATE, TRAFFIC, EvaluationSet
from models.gate import CorruptedSample, EvaluationSample, GatePolicy, GateVerdict
from models.model_store import ModelStore, VerifiedModel

log = logging.getLogger("digits.candidate_comparison")

TIMED_IMAGES = 200


@dataclass(frozen=True)
class JudgedModel:
    """A verified version and the digests of its training images."""

    model: VerifiedModel
    training_digests: NDArray[np.uint64]  # sorted or not, one per training image

    def facts(self, images: Images) -> gate.ModelFacts:
        """What the gate needs besides the predictions."""
        calls = [partial(self.model.predict_proba, image[None]) for image in images[:TIMED_IMAGES]]
        return gate.ModelFacts(
            size_bytes=len(self.model.model.content),
            milliseconds=1000 * statistics.median(timeit.timeit(call, number=1) for call in calls),
        )

    def answers(self, images: Images) -> Labels:
        """The most probable digit of each image, (n,)."""
        return self.model.predict_proba(images).argmax(axis=1).astype(np.uint8)


def fetch(store: ModelStore, version: str) -> JudgedModel:
    """The version from the registry; raises VersionNotFound, InvalidArtifact or RegistryUnreachable."""
    model = store.fetch_version(version)
    return JudgedModel(model, store.training_digests(model))


def judge(
    store: ModelStore,
    version: str,
    current: str | None,
    sets: Sequence[EvaluationSet],
    floor: float,
    policy: GatePolicy,
    significance: float,
    retired: Set[str] = frozenset(),
) -> GateVerdict:
    """Compare a candidate with the current champion, if there is one, on the evaluation sets, which are of `assemble`.

    `significance` is the level available to this judgement, `retired` the names that are excluded.
    """
    candidate = fetch(store, version)
    if current is None:
        test = next(one.split for one in sets if one.name == CANDIDATE)
        accuracy = float((candidate.answers(test.images) == test.labels).mean())
        first = gate.judge_first(accuracy, floor, candidate.facts(test.images), policy)
        return replace(first, digest=candidate.model.digest)
    champion = fetch(store, current)
    judged = [fresh(one, candidate, champion, retired) for one in evaluation_sets.distinct(sets)]
    # Traffic is used once there is enough of it. Where the champion was trained on what the candidate is tested on, its own sets
    # are about these images too. The sets that protect what was readable must stay large enough.
    for one in judged:
        if len(one.images) < policy.min_sample and one.name in (TRAFFIC, CANDIDATE):
            log.info("not judged on %s: %d images remain, %d were left out", one.name, len(one.images), one.left_out)
    judged = [one for one in judged if len(one.images) >= policy.min_sample or one.name not in (TRAFFIC, CANDIDATE)]
    samples = [one.sample(candidate, champion) for one in judged]
    corrupted = corruptions(judged, sets, candidate, champion, retired)
    images = candidate.model.reference.images
    facts = candidate.facts(images), champion.facts(images)
    verdict = gate.judge(samples, *facts, policy, significance, corrupted)
    return replace(verdict, digest=candidate.model.digest, other_digest=champion.model.digest)


@dataclass(frozen=True, eq=False)
class FreshImages:
    """The images of an evaluation set that neither model was trained on, without those of retired digits."""

    name: str
    images: Images
    labels: Labels
    clients: Sequence[str]
    routes: Sequence[str]
    left_out: int  # because one of the models was trained on them
    best_accuracy: float | None

    def sample(self, candidate: JudgedModel, champion: JudgedModel) -> EvaluationSample:
        """With the answers of both."""
        # ONNX Runtime refuses empty input.
        first, second = (one.answers(self.images) if len(self.images) else self.labels for one in (candidate, champion))
        origin = self.clients, self.routes, self.left_out, self.best_accuracy
        return EvaluationSample(self.name, self.labels, first, second, *origin)


def fresh(one: EvaluationSet, candidate: JudgedModel, champion: JudgedModel, retired: Set[str]) -> FreshImages:
    """What of a set can be judged on."""
    in_use = evaluation_sets.rows_in_use(one, retired)
    known = np.concatenate([candidate.training_digests, champion.training_digests])
    chosen = in_use & ~np.isin(digests(one.split.images), known)
    rows, left_out = np.flatnonzero(chosen).tolist(), int((in_use & ~chosen).sum())
    clients, routes = ([values[row] for row in rows] if values else [] for values in (one.clients, one.routes))
    images, labels = one.split.images[rows], one.split.labels[rows]
    return FreshImages(one.name, images, labels, clients, routes, left_out, one.best_accuracy)


def corruptions(
    judged: Sequence[FreshImages],
    sets: Sequence[EvaluationSet],
    candidate: JudgedModel,
    champion: JudgedModel,
    retired: Set[str],
) -> list[CorruptedSample]:
    """Both models on each corruption of the first set, weighed by how much of the traffic looks like it."""
    first = next((one for one in judged if one.name != TRAFFIC and len(one.images)), None)
    if first is None:
        return []
    suite = evaluation.corruptions(first.images)
    used = {name: images for name, images in suite.items() if evaluation_sets.corruption_name(name) not in retired}
    traffic = next((one.split.images for one in sets if one.name == TRAFFIC), None)
    conditions = {corruption_weights.CLEAN: first.images, **used}
    weights = corruption_weights.corruption_weights(conditions, traffic)
    return [
        CorruptedSample(
            EvaluationSample(
                evaluation_sets.corruption_name(name), first.labels, candidate.answers(images), champion.answers(images)
            ),
            weights[name],
        )
        for name, images in used.items()
    ]
