"""Judges a version: whether it is judged at all, against which other one, on which images, and at which significance."""

import json
import logging
from datetime import UTC, datetime
from functools import partial

from digits.data import datasets
from digits.data.datasets import BadData
from digits.storage import feedback, ledger, registrations
from models import approvals, candidate_comparison, challengers, evaluation_sets, gate, model_store, promotion, recipes
from models.challengers import Question
from models.connections import Platform
from models.gate import GatePolicy, GateVerdict
from models.model_store import VerifiedModel
from models.onnx_model import InvalidArtifact

log = logging.getLogger("digits.judging")

CHALLENGE_SIGNIFICANCE = 0.01  # for a candidate to replace the challenger, which promotes neither
MAX_COUNTED_IMAGES = 20_000  # of labelled traffic, 16 MB


def decided_before(platform: Platform, version: str) -> str | None:
    """Why a version is not judged again: it is the champion, or was, waits for approval, or has been a challenger; None otherwise.

    A version that was rolled back must not return through the next retraining on the same data.
    """
    entry = ledger.last_replacement(ledger.replacements(platform.engine), version)
    if platform.models.registry.version() == version:
        message = f"digits v{version} stays the champion: there is nothing new to learn"
    elif entry:
        message = (
            f"digits v{version} was the champion until the {entry.action} of v{entry.after} ({entry.reason}) and is not "
            f"promoted again without new data; `digits promote {version}` brings it back"
        )
    elif became := approvals.status(platform, version):
        message = became
    elif outcome := challengers.given_up(platform.registry, version):
        message = f"digits v{version} was a challenger ({outcome}) and is not judged again without new data"
    else:
        return None
    log.info("%s", message)
    return message


def queue_behind(platform: Platform, version: str) -> str | None:
    """Let a new candidate wait behind the challenger and say so; None where there is none or the candidate beats it.

    Only a candidate that beats the challenger is judged now: a judgement of each candidate would leave no significance for the one whose
    labelled traffic grows.
    """
    registry, now = platform.registry, datetime.now(UTC)
    challenger = challengers.appoint(registry, platform.models, now)
    if challenger in (None, version) or "gate" in registry.version_tags(version):
        return None
    against = compare(platform, version, challenger, CHALLENGE_SIGNIFICANCE, is_challenger=True)
    if against.decision == "promote":
        return None
    challengers.enqueue(registry, version, now)
    message = f"digits v{version} waits behind the challenger v{challenger}, which it does not beat: {against.sentence}"
    log.info("%s", message)
    return message


def unreadable(platform: Platform, version: str) -> str | None:
    """Why a version is not to be judged: it, its files or its data set cannot be read, or it is not of this platform; None otherwise."""
    try:
        model = _fetch(platform, version)
        platform.models.training_digests(model)
        datasets.load(platform.datasets, model.card["dataset"])
    except (InvalidArtifact, BadData) as error:
        return str(error)
    return None


def _fetch(platform: Platform, version: str) -> VerifiedModel:
    """A version that this platform trained; raises InvalidArtifact for another one, and as `ModelStore.fetch_version` does.

    Its tags are not evidence of that: anyone who can write to MLflow can set them.
    """
    model = platform.models.fetch_version(version)
    if not registrations.contains(platform.engine, model.digest):
        problem = (
            f"digits v{version} is not as a training of this platform registered it, so the gate does not judge it"
        )
        raise InvalidArtifact(f"{problem}; `digits promote {version}` promotes it all the same")
    return model


def judge(platform: Platform, version: str) -> tuple[str | None, GateVerdict]:
    """Judge a version and tag it with the verdict. Returns the champion that it was compared with, None before the first."""
    policy, champion = GatePolicy.model_validate(platform.settings.gate), platform.models.registry.version()
    judged = partial(compare, platform, version, champion)
    if champion is None:
        verdict = judged(policy.significance)
        # Without the alias nothing says what it would have to beat.
        if lost := promotion.without_champion(platform):
            log.error("%s", lost)
            verdict = GateVerdict("hold", [lost, *verdict.reasons], verdict.evidence, verdict.digest)
    else:
        question = _question(platform, version, champion, policy)
        verdict = challengers.judge(platform.engine, question, policy.significance, judged)
    promotion.record_verdict(platform.registry, version, champion, verdict)
    return champion, verdict


def _question(platform: Platform, version: str, champion: str, policy: GatePolicy) -> Question:
    # Weights follow from the inputs; a new registry counts its versions from 1 again.
    inputs = [platform.registry.version_tags(one).get("inputs") for one in (version, champion)]
    decided = [entry.number for entry in ledger.entries(platform.engine) if entry.changes_evaluation]
    traffic, unseen = feedback.audited_traffic(platform.engine, MAX_COUNTED_IMAGES), 0
    # What is retired also ends with a promotion or a rollback.
    retired = sorted(evaluation_sets.retired(platform.engine))
    if traffic is not None and evaluation_sets.TRAFFIC not in retired:
        unseen = int((~challengers.trained_on(platform.models, traffic.images, version, champion)).sum())
    conditions = challengers.conditions(policy, inputs, decided[-1:], retired)
    digest = model_store.digest(platform.models.card(version))
    return Question(version, champion, conditions, unseen if unseen >= policy.min_sample else 0, digest)


def compare(
    platform: Platform, version: str, other: str | None, significance: float, is_challenger: bool = False
) -> GateVerdict:
    """What the gate says of a version beside another one, the champion or the challenger; None before the first champion."""
    store, policy, engine = platform.models, GatePolicy.model_validate(platform.settings.gate), platform.engine
    candidate = _fetch(platform, version)
    card = candidate.card
    dataset, floor = datasets.load(platform.datasets, card["dataset"]), recipes.floor(card["recipe"]["name"])
    retired = evaluation_sets.retired(engine).keys()
    sets = evaluation_sets.assemble(platform.datasets, store, engine, dataset, other, retired)
    verdict = candidate_comparison.judge(store, version, other, sets, floor, policy, significance, retired)
    if verdict.digest != candidate.digest:
        raise InvalidArtifact(f"digits v{version}: its files changed while it was judged; register it again")
    if other is not None:
        _check_recorded(platform, other, verdict.other_digest, is_challenger)
    for one in sets:
        log.info("evaluation set %s: %s images of %s, %s", one.name, f"{len(one.split):,}", one.fingerprint, one.source)
    for line in gate.table(verdict.evidence):
        figures = ", ".join(f"{name} {value}" for name, value in line.items() if name != "set")
        log.info("on %s: %s", line["set"], figures)
    if other == store.registry.version():
        fingerprints = {one.name: one.fingerprint for one in sets}
        platform.registry.tag_version(version, {"evaluation_sets": json.dumps(fingerprints)})
    return verdict


def _check_recorded(platform: Platform, other: str, digest: str, is_challenger: bool) -> None:
    """Raise InvalidArtifact unless the champion was promoted, or the challenger was trained by this platform.

    A client with write access to MLflow can move an alias or replace files, and any candidate beats a worse version.
    """
    if is_challenger:
        is_recorded = registrations.contains(platform.engine, digest)
    else:
        promoted = ledger.promoted_digests(platform.engine)
        # As in the service, ledgers from before they had digests are no evidence.
        is_recorded = not promoted or digest in promoted
    if not is_recorded:
        problem = f"digits v{other}, which a candidate was compared with, is not as the platform recorded it"
        raise InvalidArtifact(
            f"{problem}; `digits promote {other}` verifies and records it, or move the alias back in MLflow"
        )


def appoint_challenger(platform: Platform, version: str, verdict: GateVerdict) -> None:
    """Appoint a challenger where there is none; an undecided version that beats the challenger replaces it."""
    registry, now = platform.registry, datetime.now(UTC)
    challenger = challengers.appoint(registry, platform.models, now)
    if verdict.decision == gate.UNDECIDED and challenger not in (None, version):
        against = compare(platform, version, challenger, CHALLENGE_SIGNIFICANCE, is_challenger=True)
        log.info("digits v%s beside the challenger v%s: %s", version, challenger, against.sentence)
        if against.decision == "promote":
            challengers.replace(registry, challenger, version, now)
