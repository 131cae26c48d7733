"""Challengers: candidates that wait for a decision, of which one is judged again as labelled traffic arrives; the others queue.

Their state is in the registry: the tag `challenger` of a version says what it is (`waiting`, or how it ended), `challenger_since` since
when it waits, and the alias `challenger` marks the one that is judged. Every function can be repeated after a process died in it.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from digits.data.datasets import digests
from digits.images import Images
from digits.storage import judgements
from digits.storage.judgements import Judgement
from models import significance
from models.gate import GatePolicy, GateVerdict
from models.model_store import ModelStore
from models.onnx_model import InvalidArtifact
from models.registry import RegistryWriter
from models.registry_reader import RegistryReader

log = logging.getLogger("digits.challengers")

ALIAS = "challenger"
TAG, SINCE = "challenger", "challenger_since"
WAITING: Final = "waiting"
Outcome = Literal["promoted", "held", "expired", "replaced", "unreadable", "up for approval"]


class Waiting(NamedTuple):
    """A version without a decision."""

    version: str
    since: datetime  # UTC; when it joined the queue, or when it became the challenger


def queue(registry: RegistryReader | RegistryWriter, tag: str = TAG) -> list[Waiting]:
    """All versions that wait, the challenger among them, those that wait longest first; or those in the queue of another tag."""
    found = registry.tagged(tag, WAITING).items()
    # Who sets the tag by hand gives no time.
    waiting = [
        Waiting(version, datetime.fromisoformat(tags[f"{tag}_since"]))
        for version, tags in found
        if f"{tag}_since" in tags
    ]
    return sorted(waiting, key=lambda one: (one.since, int(one.version)))


def enqueue(registry: RegistryWriter, version: str, now: datetime, tag: str = TAG) -> None:
    """Add a version to the end of the queue; one that is in it keeps its place."""
    if registry.version_tags(version).get(tag) != WAITING:
        # The state last: a version that waits has a time.
        registry.tag_version(version, {f"{tag}_since": now.isoformat(timespec="seconds")})
        registry.tag_version(version, {tag: WAITING})


def close(registry: RegistryWriter, version: str, outcome: Outcome) -> None:
    """Remove a version from the queue, with the reason; does nothing for a version that is not in it."""
    if registry.version_tags(version).get(TAG) == WAITING:
        registry.tag_version(version, {TAG: outcome})
        log.info("digits v%s left the queue of challengers: %s", version, outcome)


def given_up(registry: RegistryWriter, version: str) -> str | None:
    """How a version that waited was given up without a decision; None for others."""
    outcome = registry.version_tags(version).get(TAG)
    return outcome if outcome in ("expired", "replaced", "unreadable") else None


def expire(registry: RegistryWriter, now: datetime, days: float) -> None:
    """Close all versions that have waited for more than so many days, as challenger or in the queue."""
    for version, since in queue(registry):
        if now - since > timedelta(days=days):
            close(registry, version, "expired")


def appoint(registry: RegistryWriter, store: ModelStore, now: datetime) -> str | None:
    """The challenger; where there is none, the version that waits longest becomes it. None when no version waits."""
    current, waiting = store.registry.version(ALIAS), [one.version for one in queue(registry)]
    if current in waiting:
        return current
    if not waiting:
        if current is not None:
            registry.remove_alias(ALIAS)
        return None
    _make_challenger(registry, waiting[0], now)
    return waiting[0]


def replace(registry: RegistryWriter, challenger: str, version: str, now: datetime) -> None:
    """Make a version that waits the challenger in place of one that it beat."""
    _make_challenger(registry, version, now)
    close(registry, challenger, "replaced")


def _make_challenger(registry: RegistryWriter, version: str, now: datetime) -> None:
    """Set the alias; the days of the version are counted from now on."""
    registry.tag_version(version, {SINCE: now.isoformat(timespec="seconds")})
    registry.set_alias(ALIAS, version)
    log.info("digits v%s is the challenger", version)


def trained_on(store: ModelStore, images: Images, *versions: str) -> NDArray[np.bool_]:
    """Whether each image, (n,), was among the training images of one of the versions.

    Raises VersionNotFound, InvalidArtifact or RegistryUnreachable.
    """
    known = [store.training_digests(store.fetch_version(version)) for version in versions]
    return np.isin(digests(images), np.concatenate(known))


class Question(NamedTuple):
    """Whether the candidate is better than the champion, and what the answer depends on."""

    candidate: str  # version
    champion: str  # version
    conditions: str  # the policy and whatever else is compared apart from traffic
    traffic_images: int  # labelled images of traffic that neither was trained on; 0 where the gate does not use them
    digest: str = ""  # of the candidate

    def is_new_after(self, last: Judgement) -> bool:
        """Whether another judgement can give another result: of other files, under other conditions, or on twice as much traffic.

        Each one costs significance, so two new labels are no reason.
        """
        differs = (self.digest, self.conditions) != (last.digest, last.conditions)
        return differs or self.traffic_images >= max(2 * last.traffic_images, 1)


def judge(
    engine: Engine, question: Question, stream_level: float, compare: Callable[[float], GateVerdict]
) -> GateVerdict:
    """The verdict of `compare` at the significance that is available, recorded; without anything new, the last verdict.

    So a step that is repeated after a crash spends nothing. Raises InvalidArtifact where other files were judged than asked about.
    """
    last = judgements.last(engine, question.candidate, question.champion)
    if last and not question.is_new_after(last):
        return GateVerdict(last.decision, last.reasons, last.evidence, question.digest)
    promoted = [decision == "promote" for decision in judgements.decisions(engine)]
    level = significance.level(promoted, stream_level)
    verdict = compare(level)
    if verdict.digest != question.digest:
        raise InvalidArtifact(f"digits v{question.candidate}: its files changed while it was judged; register it again")
    judgement = Judgement(
        at=datetime.now(UTC),
        significance=level,
        p_value=significance.smallest_p_value(verdict.evidence),
        decision=verdict.decision,
        reasons=verdict.reasons,
        evidence=verdict.evidence,
        **question._asdict(),
    )
    judgements.append(engine, judgement)
    return verdict


def conditions(policy: GatePolicy, *facts: Any) -> str:
    """A hash of the policy and of other facts that a judgement depends on, apart from traffic; 32 hex digits."""
    content = json.dumps([policy.model_dump(), *facts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
