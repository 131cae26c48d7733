"""`digits retrain`: new data comes in, a candidate is trained, and it replaces the champion only if it is really better."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from pydantic import BaseModel, ValidationError

from digits.data import datasets, inbox
from digits.data.datasets import Dataset
from digits.settings import Settings
from digits.storage import cooldowns, feedback, ledger
from flows import alerts, crashed_runs
from flows.alerts import Alert
from flows.connections import Platform
from flows.ingest import extend, read_source, with_feedback
from flows.tasks import publish, server_task
from flows.train import train_on
from models import gate, recipes
from models.gate import GateVerdict
from models.training import Recipe

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = logging.getLogger("digits.retrain")

LIMIT = "digits-retrain"  # Prefect's concurrency limit, of one slot
SLOT_TIMEOUT_SECONDS = 60  # on SQLite, Prefect's writers wait for each other, 10 s and more on a busy machine
LEASE_SECONDS = 60  # the shortest that Prefect gives; after it, the slot of a killed retraining is free again
COOLDOWN = "retrained"  # the name under which the end of the last retraining is stored


class AlreadyRetraining(RuntimeError):
    """Another retraining is running."""


@flow(name="retrain")
def retrain(
    recipe: str | None = None, data: str | None = None, seed: int = 0, reason: str = "by hand", cooldown: bool = False
) -> str:
    """Take in new data, train a candidate, and promote it or say why not; the decision in a sentence.

    The recipe is the setting `DIGITS_RECIPE` and the data set the current one unless given. With `cooldown`, as for events,
    nothing is done for a while after the last retraining.
    """
    platform = Platform()
    with retraining_slot(), alert_on_failure(platform.settings):
        crashed_runs.tag(reason)
        if cooldown and (waiting := cooldown_message(platform)):
            return waiting
        with record_finish(platform.engine):
            check_policies(platform.settings)
            server_task(repair_crashed)(platform)
            chosen = recipes.find(recipe or platform.settings.recipe).model_copy(update={"seed": seed})
            dataset = server_task(assemble_dataset)(platform, data)
            version = server_task(trained_before)(platform, dataset.fingerprint, chosen)
            if version is None:
                version = train_on(platform, dataset, chosen, {"reason": reason})
            elif decided := decided_before(platform, version):
                return decided
            champion, verdict = server_task(judge)(platform, version, dataset, recipes.floor(chosen.name))
            server_task(apply_verdict)(platform, version, champion, verdict)
    return f"digits v{version}: {verdict.sentence}"


@contextmanager
def retraining_slot() -> Iterator[None]:
    """Hold the only slot for retraining that Prefect gives out, on all machines; raises AlreadyRetraining.

    Without Prefect the lease ends, and the retraining goes on: a server that does not answer gives the slot to no other one.
    """
    taken = AlreadyRetraining("another retraining is running; wait for its end, or cancel it in the Prefect UI")
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        if client.read_global_concurrency_limit_by_name(LIMIT).active_slots:
            raise taken
    slot = concurrency(
        LIMIT,
        timeout_seconds=SLOT_TIMEOUT_SECONDS,
        strict=True,
        lease_duration=LEASE_SECONDS,
        raise_on_lease_renewal_failure=False,
    )
    held = ExitStack()
    try:
        held.enter_context(slot)
    except TimeoutError as error:
        raise taken from error
    try:
        yield
    finally:
        with suppress(httpx.HTTPError):
            held.close()


@contextmanager
def alert_on_failure(settings: Settings) -> Iterator[None]:
    """Send an alert about an error in the block, and raise it again."""
    try:
        yield
    except Exception as error:
        log.error("the retraining failed: %s", error)
        alert = Alert("retraining failed", type(error).__name__, f"The retraining failed: {error}")
        alerts.send(settings, alert)
        raise


@contextmanager
def record_finish(engine: "Engine") -> Iterator[None]:
    """Record when the block ended or failed, so that no event starts it again at once; a killed one is repeated."""
    try:
        yield
    except Exception:
        cooldowns.put(engine, COOLDOWN, datetime.now(UTC))
        raise
    cooldowns.put(engine, COOLDOWN, datetime.now(UTC))


def cooldown_message(platform: Platform) -> str | None:
    """Why an event starts no retraining yet; None when the last one ended long enough ago."""
    last = cooldowns.at(platform.engine, COOLDOWN)
    again = last and last + timedelta(hours=platform.settings.retrain_cooldown_hours)
    if again is None or datetime.now(UTC) >= again:
        return None
    message = (
        f"the last retraining ended at {last:%Y-%m-%d %H:%M} UTC, events start the next from {again:%Y-%m-%d %H:%M} on"
    )
    log.info("%s", message)
    return message


def check_policies(settings: Settings) -> None:
    """Raise ValueError for a wrong policy, before anything is trained; it names the setting."""
    policies: list[tuple[str, type[BaseModel], Mapping[str, Any]]] = [
        ("DIGITS_GATE", gate.GatePolicy, settings.gate),
        ("DIGITS_FEEDBACK", feedback.FeedbackPolicy, settings.feedback),
    ]
    for setting, policy, fields in policies:
        try:
            policy.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            name, known = ".".join(map(str, first["loc"])), ", ".join(policy.model_fields)
            raise ValueError(f"{setting}: {name} is {first['input']!r} ({first['msg']}); it takes {known}") from error


def repair_crashed(platform: Platform) -> None:
    """Close the runs of retrainings whose process died, and record a promotion that did not reach the ledger."""
    from models import promotion

    crashed_runs.mark_crashed(platform.registry, timedelta(seconds=LEASE_SECONDS))
    promotion.repair_ledger(platform.registry, platform.models, platform.engine)


def assemble_dataset(platform: Platform, data: str | None) -> Dataset:
    """The data set to train on, stored: the source or the current one, with what lies in the inbox and with feedback.

    Files leave the inbox last, and labels are read from the database every time: a retraining that dies on the way is
    repeated by the next one, with the same result.
    """
    storage, settings = platform.datasets, platform.settings
    current = datasets.current(storage)
    start = read_source(platform, data or "mnist") if data or current is None else datasets.load(storage, current)
    batch = inbox.read_inbox(settings.inbox)
    start = extend(start, batch.labelled, ", ".join(batch.names))
    _ingest_feedback(platform)
    dataset = with_feedback(platform, start)
    for made in {start.fingerprint: start, dataset.fingerprint: dataset}.values():
        datasets.save(made, storage)
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


def trained_before(platform: Platform, fingerprint: str, recipe: Recipe) -> str | None:
    """A version with the same data, recipe, code and libraries, which another training would only repeat."""
    version = platform.registry.trained_before(fingerprint, recipe)
    if version:
        log.info("nothing new to learn: digits v%s has the same data, recipe, code and libraries", version)
    return version


def decided_before(platform: Platform, version: str) -> str | None:
    """Why a version is not judged again: it is the champion, or it was and was replaced; None otherwise.

    A version that was rolled back must not return through the next retraining on the same data.
    """
    message = None
    if platform.models.registry.version() == version:
        message = f"digits v{version} stays the champion: there is nothing new to learn"
    elif entry := ledger.last_replacement(ledger.entries(platform.engine), version):
        message = (
            f"digits v{version} was the champion until the {entry.action} of v{entry.to_version} ({entry.why}) and is not "
            f"promoted again without new data; `digits promote {version}` brings it back"
        )
    if message:
        log.info("%s", message)
    return message


def judge(platform: Platform, version: str, dataset: Dataset, floor: float) -> tuple[str | None, GateVerdict]:
    """Compare candidate and champion on the data set's test images and on labelled traffic, and record the verdict.

    The champion's version, None before the first, and the verdict.
    """
    from models import candidate_comparison, promotion  # ONNX Runtime and scikit-learn

    policy = gate.GatePolicy.model_validate(platform.settings.gate)
    registry, store, test = platform.registry, platform.models, dataset.test
    current = store.registry.version()
    candidate = candidate_comparison.JudgedModel.fetch(store, version)
    if current is None:
        verdict = gate.judge_first(candidate.accuracy(test), floor, candidate.facts(test), policy)
    else:
        champion = candidate_comparison.JudgedModel.fetch(store, current)
        traffic = feedback.audited_traffic(platform.engine)
        samples = candidate_comparison.samples(test, traffic, candidate, champion, policy)
        before = promotion.last_evidence(registry, version, current)
        comparison = gate.comparison_number(samples, before)
        if comparison is None:
            reason = "there are less than twice as many labelled answers as in the last comparison of the two"
            return current, GateVerdict(gate.UNDECIDED, [reason], before)
        verdict = gate.judge(samples, candidate.facts(test), champion.facts(test), policy, comparison)
    promotion.record_verdict(registry, store, version, current, verdict)
    return current, verdict


def apply_verdict(platform: Platform, version: str, champion: str | None, verdict: GateVerdict) -> None:
    """Promote the candidate over the champion it was judged against, or keep an undecided one as challenger."""
    from models import promotion

    publish("gate", f"digits v{version}: {verdict.decision}", _markdown(version, verdict))
    registry, store = platform.registry, platform.models
    current = store.registry.version()
    if current == version:
        log.info("digits v%s is the champion already", version)
        promotion.repair_ledger(registry, store, platform.engine)
    elif current != champion:
        log.warning(
            "digits v%s was judged against v%s, but v%s is the champion now: nothing changes; "
            "the next retraining judges it again",
            version,
            champion,
            current,
        )
    elif verdict.decision == "promote":
        promotion.promote(registry, store, platform.engine, version, "; ".join(verdict.reasons), verdict.evidence)
    else:
        log.info("digits v%s: %s", version, verdict.sentence)
        if verdict.decision == gate.UNDECIDED:
            promotion.set_challenger(registry, store, version)


def _markdown(version: str, verdict: GateVerdict) -> str:
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in verdict.evidence.items())
    return f"# digits v{version}: {verdict.decision}\n\n{reasons}\n\n| evidence | |\n|---|---|\n{rows}\n"
