"""`digits retrain`: new data comes in, a candidate is trained, and it replaces the champion only if it is really better."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from digits.data import datasets, inbox
from digits.data.datasets import BadData, Dataset
from digits.settings import Settings
from digits.storage import cooldowns, database, feedback, ledger
from flows import alerts, crashed_runs, promote
from flows.alerts import Alert
from flows.connections import Platform
from flows.ingest import champion_predictions, extend, read_source, with_feedback
from flows.tasks import publish, server_task
from flows.train import train_on
from models import gate, recipes
from models.gate import GatePolicy, GateVerdict

if TYPE_CHECKING:  # MLflow takes 4 s to import
    from models.challengers import Question

log = logging.getLogger("digits.retrain")

LIMIT = "digits-retrain"  # Prefect's concurrency limit, of one slot
SLOT_TIMEOUT_SECONDS = 60  # on SQLite, Prefect's writers wait for each other, 10 s and more on a busy machine
LEASE_SECONDS = 60  # the shortest that Prefect gives; after it, the slot of a killed retraining is free again
CHALLENGE_SIGNIFICANCE = 0.01  # for a candidate to replace the challenger, which promotes neither
MAX_COUNTED_IMAGES = 20_000  # of labelled traffic, 16 MB
COOLDOWN = "retrained"  # the name under which the end of the last retraining is stored


@flow(name="retrain")
def retrain(
    recipe: str | None = None, data: str | None = None, seed: int = 0, reason: str = "manual", cooldown: bool = False
) -> str:
    """Take in new data, train a candidate, and promote it or say why not. Returns the decision in a sentence.

    The recipe is the setting `DIGITS_RECIPE` and the data set the current one unless given. With `cooldown`, as for events,
    nothing is done for a while after the last retraining.
    """
    platform = Platform()
    with retraining_slot():
        crashed_runs.tag(reason)
        if cooldown and (waiting := cooldown_message(platform)):
            return waiting
        with report_end(platform):
            check_policies(platform.settings)
            server_task(repair_crashed)(platform)
            seeded = recipes.find(recipe or platform.settings.recipe).model_copy(update={"seed": seed})
            dataset = server_task(assemble_dataset)(platform, data)
            server_task(review_challengers)(platform)
            version = server_task(platform.registry.trained_before)(dataset.fingerprint, seeded)
            if version is None:
                version = train_on(platform, dataset, seeded, {"reason": reason})
            return decide(platform, version)


@contextmanager
def retraining_slot(wait_seconds: float = 0) -> Iterator[None]:
    """Hold the only slot for retraining that Prefect gives out, on all machines; raises RuntimeError where it is held.

    With `wait_seconds` another retraining may end first. If Prefect becomes unreachable, the lease ends and the retraining
    continues; until Prefect is back, no other one gets the slot.
    """
    slot_taken = RuntimeError("another retraining is running; wait for its end, or cancel it in the Prefect UI")
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        if not wait_seconds and client.read_global_concurrency_limit_by_name(LIMIT).active_slots:
            raise slot_taken
    held, timeout_seconds = ExitStack(), max(wait_seconds, SLOT_TIMEOUT_SECONDS)
    try:
        held.enter_context(concurrency(LIMIT, timeout_seconds=timeout_seconds, lease_duration=LEASE_SECONDS))
    except TimeoutError as error:
        raise slot_taken from error
    try:
        yield
    finally:
        with suppress(httpx.HTTPError):
            held.close()


@contextmanager
def report_end(platform: Platform) -> Iterator[None]:
    """Record when the block ends, so that no event starts it again at once, and send an alert about its error.

    A block that is killed records nothing and is repeated by the next event.
    """
    settings = platform.settings
    try:
        yield
    except Exception as error:
        log.error("the retraining failed: %s", error)
        alert = Alert("retraining failed", type(error).__name__, f"The retraining failed: {error}")
        alerts.send(settings, alert)
        cooldowns.put(platform.engine, COOLDOWN, datetime.now(UTC))
        raise
    cooldowns.put(platform.engine, COOLDOWN, datetime.now(UTC))


def cooldown_message(platform: Platform) -> str | None:
    """Why an event starts no retraining yet; None when the last one ended long enough ago, or the database is unreachable."""
    last = None
    with suppress(*database.ERRORS):
        last = cooldowns.at(platform.engine, COOLDOWN)
    again = last and last + timedelta(hours=platform.settings.retrain_cooldown_hours)
    if again is None or datetime.now(UTC) >= again:
        return None
    ended, start = f"{last:%Y-%m-%d %H:%M} UTC", f"{again:%Y-%m-%d %H:%M}"
    message = f"the last retraining ended at {ended}, events start the next from {start} on"
    log.info("%s", message)
    return message


def check_policies(settings: Settings) -> None:
    """Raise pydantic's ValidationError, which names the setting, before anything is trained with a wrong policy."""
    gate.GatePolicy.model_validate(settings.gate)
    feedback.FeedbackPolicy.model_validate(settings.feedback)


def repair_crashed(platform: Platform) -> None:
    """Close the runs of retrainings whose process died, and record a promotion that did not reach the ledger."""
    from models import evaluation_sets, promotion

    crashed_runs.mark_crashed(platform.registry, timedelta(seconds=LEASE_SECONDS))
    if entry := promotion.repair_ledger(platform.registry, platform.models, platform.engine):
        promote.settle(platform, str(entry.after), entry.before)
    evaluation_sets.pin_first_anchor(platform.models, platform.engine)


def assemble_dataset(platform: Platform, data: str | None) -> Dataset:
    """Store and return the data set to train on: the source or the current one, with the inbox and with feedback.

    Files leave the inbox last, and labels are read from the database every time: a retraining that dies on the way is
    repeated by the next one, with the same result.
    """
    storage, settings = platform.datasets, platform.settings
    current = datasets.current(storage)
    start = read_source(platform, data or "mnist") if data or current is None else datasets.load(storage, current)
    batch = inbox.read_inbox(settings.inbox, champion_predictions(platform), limit_bytes=settings.source_limit_bytes)
    start = extend(start, batch.labelled, ", ".join(batch.stamps))
    _ingest_feedback(platform)
    dataset = with_feedback(platform, start)
    for new in {start.fingerprint: start, dataset.fingerprint: dataset}.values():
        datasets.save(new, storage)
    datasets.set_current(storage, start.fingerprint)
    inbox.archive(batch, settings.inbox)
    return dataset


def _ingest_feedback(platform: Platform) -> None:
    policy = feedback.FeedbackPolicy.model_validate(platform.settings.feedback)
    counts = feedback.ingest_feedback(platform.engine, policy)
    if counts:
        parts = ", ".join(f"{count} {part}" for part, count in counts.items())
        log.info("ingested %d labels from feedback: %s", counts.total(), parts)
    if counts["quarantine"]:
        log.info("`digits audit --quarantine` shows the labels in quarantine")


def decided_before(platform: Platform, version: str) -> str | None:
    """Why a version is not judged again: it is the champion, or was, or has been a challenger; None otherwise.

    A version that was rolled back must not return through the next retraining on the same data.
    """
    from models import challengers

    entry = ledger.last_replacement(ledger.replacements(platform.engine), version)
    if platform.models.registry.version() == version:
        message = f"digits v{version} stays the champion: there is nothing new to learn"
    elif entry:
        message = (
            f"digits v{version} was the champion until the {entry.action} of v{entry.after} ({entry.reason}) and is not "
            f"promoted again without new data; `digits promote {version}` brings it back"
        )
    elif outcome := challengers.given_up(platform.registry, version):
        message = f"digits v{version} was a challenger ({outcome}) and is not judged again without new data"
    else:
        return None
    log.info("%s", message)
    return message


def review_challengers(platform: Platform) -> None:
    """Judge the challenger again where there is enough new traffic; when it is decided, the next one that waits follows."""
    from models import challengers

    registry, store, now = platform.registry, platform.models, datetime.now(UTC)
    if champion := store.registry.version():
        challengers.close(registry, champion, "promoted")
    challengers.expire(registry, now, platform.settings.challenger_days)
    while challenger := challengers.appoint(registry, store, now):
        if problem := _unreadable(platform, challenger):
            log.error("digits v%s can be judged no longer: %s", challenger, problem)
            challengers.close(registry, challenger, "unreadable")
            continue
        current, verdict = judge(platform, challenger)
        apply_verdict(platform, challenger, current, verdict)
        if verdict.decision == gate.UNDECIDED:
            break


def _unreadable(platform: Platform, version: str) -> str | None:
    """Why the files of a version or its data set cannot be read; None where they can."""
    from models.onnx_model import InvalidArtifact

    try:
        model = platform.models.fetch_version(version)
        platform.models.training_digests(model)
        datasets.load(platform.datasets, model.card["dataset"])
    except (InvalidArtifact, BadData) as error:
        return str(error)
    return None


def decide(platform: Platform, version: str) -> str:
    """Judge a candidate inside the current flow, or let it wait behind the challenger. Returns the decision in a sentence."""
    if decided := server_task(decided_before)(platform, version) or server_task(queue_behind)(platform, version):
        return decided
    champion, verdict = server_task(judge)(platform, version)
    server_task(apply_verdict)(platform, version, champion, verdict)
    return f"digits v{version}: {verdict.sentence}"


def queue_behind(platform: Platform, version: str) -> str | None:
    """Let a new candidate wait behind the challenger and say so; None where there is none or the candidate beats it.

    Only a candidate that beats the challenger is judged now: a judgement of each candidate would leave no significance for the one whose
    labelled traffic grows.
    """
    from models import challengers

    registry, now = platform.registry, datetime.now(UTC)
    challenger = challengers.appoint(registry, platform.models, now)
    if challenger in (None, version) or "gate" in registry.version_tags(version):
        return None
    against = compare(platform, version, challenger, CHALLENGE_SIGNIFICANCE)
    if against.decision == "promote":
        return None
    challengers.enqueue(registry, version, now)
    message = f"digits v{version} waits behind the challenger v{challenger}, which it does not beat: {against.sentence}"
    log.info("%s", message)
    return message


def judge(platform: Platform, version: str) -> tuple[str | None, GateVerdict]:
    """Judge a version and tag it with the verdict. Returns the champion that it was compared with, None before the first."""
    from models import challengers, promotion

    policy, champion = gate.GatePolicy.model_validate(platform.settings.gate), platform.models.registry.version()
    judged = partial(compare, platform, version, champion)
    if champion is None:
        verdict = judged(policy.significance)
    else:
        question = _question(platform, version, champion, policy)
        verdict = challengers.judge(platform.engine, question, policy.significance, judged)
    promotion.record_verdict(platform.registry, version, champion, verdict)
    return champion, verdict


def _question(platform: Platform, version: str, champion: str, policy: GatePolicy) -> "Question":
    from models import challengers, evaluation_sets

    # Weights follow from the inputs; a new registry counts its versions from 1 again.
    inputs = [platform.registry.version_tags(one).get("inputs") for one in (version, champion)]
    decided = [entry.number for entry in ledger.entries(platform.engine) if entry.changes_evaluation]
    traffic, unseen = feedback.audited_traffic(platform.engine, MAX_COUNTED_IMAGES), 0
    # What is retired also ends with a promotion or a rollback.
    retired = sorted(evaluation_sets.retired(platform.engine))
    if traffic is not None and evaluation_sets.TRAFFIC not in retired:
        unseen = int((~challengers.trained_on(platform.models, traffic.images, version, champion)).sum())
    conditions = challengers.conditions(policy, inputs, decided[-1:], retired)
    return challengers.Question(version, champion, conditions, unseen if unseen >= policy.min_sample else 0)


def compare(platform: Platform, version: str, other: str | None, significance: float) -> GateVerdict:
    """What the gate says of a version beside another one, the champion or the challenger; None before the first champion."""
    from models import candidate_comparison, evaluation_sets  # ONNX Runtime and scikit-learn

    store, policy, engine = platform.models, gate.GatePolicy.model_validate(platform.settings.gate), platform.engine
    card = store.fetch_version(version).card
    dataset, floor = datasets.load(platform.datasets, card["dataset"]), recipes.floor(card["recipe"]["name"])
    retired = evaluation_sets.retired(engine).keys()
    sets = evaluation_sets.assemble(platform.datasets, store, engine, dataset, other, retired)
    verdict = candidate_comparison.judge(store, version, other, sets, floor, policy, significance, retired)
    for one in sets:
        log.info("evaluation set %s: %s images of %s, %s", one.name, f"{len(one.split):,}", one.fingerprint, one.source)
    for line in gate.table(verdict.evidence):
        figures = ", ".join(f"{name} {value}" for name, value in line.items() if name != "set")
        log.info("on %s: %s", line["set"], figures)
    if other == store.registry.version():
        fingerprints = {one.name: one.fingerprint for one in sets}
        platform.registry.tag_version(version, {"evaluation_sets": json.dumps(fingerprints)})
    return verdict


def apply_verdict(platform: Platform, version: str, champion: str | None, verdict: GateVerdict) -> None:
    """Show the verdict on the page of the flow run, promote the version or let an undecided one wait, and appoint the challenger."""
    from models import challengers, promotion

    log.info("digits v%s: %s", version, verdict.sentence)
    publish("gate", f"digits v{version}: {verdict.decision}", gate_page(version, verdict))
    registry, store, now = platform.registry, platform.models, datetime.now(UTC)
    promotion.apply_verdict(registry, store, platform.engine, version, champion, verdict)
    if store.registry.version() == version != champion:
        promote.settle(platform, version, champion)
    challenger = challengers.appoint(registry, store, now)
    if verdict.decision == gate.UNDECIDED and challenger not in (None, version):
        against = compare(platform, version, challenger, CHALLENGE_SIGNIFICANCE)
        log.info("digits v%s beside the challenger v%s: %s", version, challenger, against.sentence)
        if against.decision == "promote":
            challengers.replace(registry, challenger, version, now)


def gate_page(version: str, verdict: GateVerdict) -> str:
    """The verdict as Markdown: its reasons, a table of the evaluation sets, and all evidence."""
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    lines = gate.table(verdict.evidence)
    cells = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)] if lines else []
    sets = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    evidence = "\n".join(f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in verdict.evidence.items())
    table = f"{sets}\n\n" if lines else ""
    return f"# digits v{version}: {verdict.decision}\n\n{reasons}\n\n{table}| evidence | |\n|---|---|\n{evidence}\n"
