"""`digits retrain`: new data comes in, a candidate is trained, and it replaces the champion only if it is really better."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.states import Completed

from digits.data import datasets, inbox
from digits.data.datasets import Dataset
from digits.settings import Settings
from digits.storage import cooldowns, database, feedback
from flows import alerts, approve, check_labels, crashed_runs, promote
from flows.alerts import Alert
from flows.ingest import champion_predictions, extend, read_source, with_feedback
from flows.tasks import server_task
from flows.train import train_on
from flows.verdict_page import publish_verdict
from models import gate, recipes
from models.connections import Platform
from models.gate import GateVerdict
from models.training import Recipe
from monitoring import reports

log = logging.getLogger("digits.retrain")

LIMIT = "digits-retrain"  # Prefect's concurrency limit, of one slot
SLOT_TIMEOUT_SECONDS = 60  # on SQLite, Prefect's writers wait for each other, 10 s and more on a busy machine
LEASE_SECONDS = 60  # the shortest that Prefect gives; after it, the slot of a killed retraining is free again


class SlotTaken(RuntimeError):
    """Another retraining runs."""


@flow(name="retrain")
def retrain(
    recipe: str | None = None,
    data: str | None = None,
    seed: int = 0,
    reason: str = "manual",
    cooldown: bool = False,
    wait_seconds: float = 0,
    n_models: int | None = None,
    report: str = "",
) -> str:
    """Take in new data, train a candidate, and promote it, ask for approval, or say why not. Returns the decision in a sentence.

    The recipe is the setting `DIGITS_RECIPE` and the data set the current one unless given. It waits up to `wait_seconds` for
    another retraining to end. With `cooldown`, as for events, the run is skipped for a while after the last retraining, and
    where another one goes on; otherwise that is an error. The drift report of this name becomes an artifact of the training.
    With `n_models` so many networks are averaged, whatever the recipe says.
    """
    platform, started_at, changes = (
        Platform(),
        datetime.now(UTC),
        {"seed": seed} | ({"n_models": n_models} if n_models else {}),
    )
    crashed_runs.tag(reason)
    try:
        with retraining_slot(wait_seconds):
            if cooldown and (waiting := cooldown_message(platform)):
                return skipped(waiting)
            with report_end(platform):
                seeded = recipes.find(recipe or platform.settings.recipe).model_copy(update=changes)
                dataset, version, is_new = candidate(platform, seeded, data, reason, report)
                decision = decide(platform, version)
    except SlotTaken:
        if not cooldown:
            raise
        return skipped("another retraining is running, events start the next from the end of its cooldown on")
    # It decides nothing, and in the slot it would keep the next retraining waiting.
    if is_new:
        check_labels.hand_over(platform, dataset.fingerprint, started_at, version)
    return decision


def candidate(
    platform: Platform, recipe: Recipe, data: str | None, reason: str, report: str
) -> tuple[Dataset, str, bool]:
    """The data set with what is new, the version trained on it, and whether it is trained now, inside the current flow, or was before."""
    check_policies(platform.settings)
    server_task(repair_crashed)(platform)
    dataset = server_task(assemble_dataset)(platform, data)
    server_task(approve.review)(platform)
    server_task(review_challengers)(platform)
    if known := server_task(platform.registry.trained_before)(dataset.fingerprint, recipe):
        return dataset, known, False
    return dataset, train_on(platform, dataset, recipe, {"reason": reason}, drift_report(platform, report)), True


def skipped(sentence: str) -> str:
    """The sentence, as what the current flow returns; Prefect shows it with the state Skipped of a run that is completed."""
    log.info("%s", sentence)
    # Prefect takes a state that a flow returns for that of the run, and gives its data to the caller.
    return cast(str, Completed(name="Skipped", message=sentence, data=sentence))


def drift_report(platform: Platform, name: str) -> Path | None:
    """The folder of the report that an event names; None where there is none on this machine."""
    found = reports.find(platform.settings.home / "reports", name)
    if name and found is None:
        log.warning("the report %r is not on this machine, so the training has no copy of it", name)
    return found


@contextmanager
def retraining_slot(wait_seconds: float = 0) -> Iterator[None]:
    """Hold the only slot for retraining that Prefect gives out, on all machines; raises SlotTaken where it is held.

    Waits up to `wait_seconds` for another retraining to end. If Prefect becomes unreachable, the lease ends and the retraining
    continues; until Prefect is back, no other one gets the slot.
    """
    slot_taken = SlotTaken("another retraining is running; wait for its end, or cancel it in the Prefect UI")
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
        alert = Alert("retraining failed", type(error).__name__, f"The retraining failed: {error}")
        alerts.send(settings, alert)
        cooldowns.put(platform.engine, cooldowns.RETRAINED, datetime.now(UTC))
        raise
    cooldowns.put(platform.engine, cooldowns.RETRAINED, datetime.now(UTC))


def cooldown_message(platform: Platform) -> str | None:
    """Why an event starts no retraining yet; None when the last one ended long enough ago, or the database is unreachable."""
    last = None
    with suppress(*database.ERRORS):
        last = cooldowns.at(platform.engine, cooldowns.RETRAINED)
    again = last and last + timedelta(hours=platform.settings.retrain_cooldown_hours)
    if again is None or datetime.now(UTC) >= again:
        return None
    ended, start = f"{last:%Y-%m-%d %H:%M} UTC", f"{again:%Y-%m-%d %H:%M}"
    return f"the last retraining ended at {ended}, events start the next from {start} on"


def check_policies(settings: Settings) -> None:
    """Raise pydantic's ValidationError, which names the setting, before anything is trained with a wrong policy."""
    gate.GatePolicy.model_validate(settings.gate)
    feedback.FeedbackPolicy.model_validate(settings.feedback)


def repair_crashed(platform: Platform) -> None:
    """Close the runs of retrainings whose process died, and finish a promotion that did not reach the registry."""
    from models import evaluation_sets, promotion

    crashed_runs.mark_crashed(platform.registry, timedelta(seconds=LEASE_SECONDS))
    if entry := promotion.finish_promotion(platform):
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
    start = extend(start, batch.labelled, batch.source)
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
        log.info("an auditor decides on the labels in quarantine at %s/label", platform.settings.service_url)


def review_challengers(platform: Platform) -> None:
    """Judge the challenger again where there is enough new traffic; when it is decided, the next one that waits follows."""
    from models import challengers, judging

    registry, store, now = platform.registry, platform.models, datetime.now(UTC)
    if champion := store.registry.version():
        challengers.close(registry, champion, "promoted")
    challengers.expire(registry, now, platform.settings.challenger_days)
    while challenger := challengers.appoint(registry, store, now):
        if problem := judging.unreadable(platform, challenger):
            log.error("digits v%s can be judged no longer: %s", challenger, problem)
            challengers.close(registry, challenger, "unreadable")
            continue
        current, verdict = judging.judge(platform, challenger)
        apply_verdict(platform, challenger, current, verdict)
        if verdict.decision == gate.UNDECIDED:
            break


def decide(platform: Platform, version: str) -> str:
    """Judge a candidate inside the current flow, or let it wait behind the challenger. Returns the decision in a sentence."""
    from models import judging  # ONNX Runtime and scikit-learn

    decided = server_task(judging.decided_before)(platform, version)
    if sentence := decided or server_task(judging.queue_behind)(platform, version):
        return sentence
    champion, verdict = server_task(judging.judge)(platform, version)
    waits = server_task(apply_verdict)(platform, version, champion, verdict)
    return f"digits v{version}: {verdict.sentence}" + (f"; it waits for approval: `digits approve {version}`" * waits)


def apply_verdict(platform: Platform, version: str, champion: str | None, verdict: GateVerdict) -> bool:
    """Show the verdict on the page of the flow run, promote the version, ask for approval or let it wait, and appoint the challenger.

    Returns whether it asked for approval.
    """
    from models import approvals, judging, promotion

    log.info("digits v%s: %s", version, verdict.sentence)
    publish_verdict(platform, version, verdict)
    store, is_asked = platform.models, approvals.is_needed(platform.settings, champion, verdict)
    if is_asked:
        approve.ask(platform, version)
    else:
        promotion.apply_verdict(platform, version, champion, verdict)
    if store.registry.version() == version != champion:
        promote.settle(platform, version, champion)
    judging.appoint_challenger(platform, version, verdict)
    return is_asked
