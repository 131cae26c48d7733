"""`digits retrain`: new data comes in, a candidate is trained, and it replaces the champion only if it is really better."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from digits.data import datasets, inbox
from digits.data.datasets import Dataset
from digits.settings import Settings
from digits.storage import cooldowns, database, feedback, ledger
from flows import alerts, crashed_runs
from flows.alerts import Alert
from flows.connections import Platform
from flows.ingest import extend, read_source, with_feedback
from flows.tasks import publish, server_task
from flows.train import train_on
from models import gate, recipes
from models.gate import GateVerdict
from models.training import Recipe
from monitoring import baseline

log = logging.getLogger("digits.retrain")

LIMIT = "digits-retrain"  # Prefect's concurrency limit, of one slot
SLOT_TIMEOUT_SECONDS = 60  # on SQLite, Prefect's writers wait for each other, 10 s and more on a busy machine
LEASE_SECONDS = 60  # the shortest that Prefect gives; after it, the slot of a killed retraining is free again
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
            version = server_task(platform.registry.trained_before)(dataset.fingerprint, seeded)
            if version is None:
                version = train_on(platform, dataset, seeded, {"reason": reason})
            elif decided := decided_before(platform, version):
                return decided
            champion, verdict = server_task(judge)(platform, version, dataset, seeded)
            server_task(apply_verdict)(platform, version, champion, verdict)
    return f"digits v{version}: {verdict.sentence}"


@contextmanager
def retraining_slot() -> Iterator[None]:
    """Hold the only slot for retraining that Prefect gives out, on all machines; raises RuntimeError where it is held.

    If Prefect becomes unreachable, the lease ends and the retraining continues; until Prefect is back, no other one gets the slot.
    """
    slot_taken = RuntimeError("another retraining is running; wait for its end, or cancel it in the Prefect UI")
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        if client.read_global_concurrency_limit_by_name(LIMIT).active_slots:
            raise slot_taken
    held = ExitStack()
    try:
        held.enter_context(concurrency(LIMIT, timeout_seconds=SLOT_TIMEOUT_SECONDS, lease_duration=LEASE_SECONDS))
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
    from models import promotion

    crashed_runs.mark_crashed(platform.registry, timedelta(seconds=LEASE_SECONDS))
    promotion.repair_ledger(platform.registry, platform.models, platform.engine)


def assemble_dataset(platform: Platform, data: str | None) -> Dataset:
    """Store and return the data set to train on: the source or the current one, with the inbox and with feedback.

    Files leave the inbox last, and labels are read from the database every time: a retraining that dies on the way is
    repeated by the next one, with the same result.
    """
    storage, settings = platform.datasets, platform.settings
    current = datasets.current(storage)
    start = read_source(platform, data or "mnist") if data or current is None else datasets.load(storage, current)
    batch = inbox.read_inbox(settings.inbox)
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
    """Why a version is not judged again: it is the champion, or it was and was replaced; None otherwise.

    A version that was rolled back must not return through the next retraining on the same data.
    """
    entry = ledger.last_replacement(ledger.entries(platform.engine, ledger.CHAMPION), version)
    if platform.models.registry.version() == version:
        message = f"digits v{version} stays the champion: there is nothing new to learn"
    elif entry:
        message = (
            f"digits v{version} was the champion until the {entry.action} of v{entry.after} ({entry.reason}) and is not "
            f"promoted again without new data; `digits promote {version}` brings it back"
        )
    else:
        return None
    log.info("%s", message)
    return message


def judge(platform: Platform, version: str, dataset: Dataset, recipe: Recipe) -> tuple[str | None, GateVerdict]:
    """Judge a candidate and tag it with the verdict. Returns the champion's version, None before the first, and the verdict."""
    from models import candidate_comparison, promotion  # ONNX Runtime and scikit-learn

    store, policy = platform.models, gate.GatePolicy.model_validate(platform.settings.gate)
    current, test, floor = store.registry.version(), dataset.test, recipes.floor(recipe.name)
    traffic = feedback.audited_traffic(platform.engine)
    before = promotion.last_evidence(platform.registry, version, current) if current else {}
    verdict = candidate_comparison.judge(store, version, current, test, traffic, floor, policy, before)
    # Without another comparison, the tags of the last one remain.
    if verdict.evidence != before:
        promotion.record_verdict(platform.registry, version, current, verdict)
    return current, verdict


def apply_verdict(platform: Platform, version: str, champion: str | None, verdict: GateVerdict) -> None:
    """Show the verdict on the page of the flow run, and promote the candidate or keep an undecided one as challenger."""
    from models import promotion

    log.info("digits v%s: %s", version, verdict.sentence)
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in verdict.evidence.items())
    title = f"digits v{version}: {verdict.decision}"
    publish("gate", title, f"# {title}\n\n{reasons}\n\n| evidence | |\n|---|---|\n{rows}\n")
    promotion.apply_verdict(platform.registry, platform.models, platform.engine, version, champion, verdict)
    if platform.models.registry.version() == version != champion:
        baseline.at_promotion(platform.engine, version, champion)
