"""`digits retrain`: new data comes in, a candidate is trained, and it replaces the champion only if it is really better."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from pydantic import BaseModel, ValidationError

from digits.data import datasets, inbox
from digits.settings import Settings, load_settings
from digits.storage import cooldowns, database, feedback, ledger
from flows import alerts, crashed_runs
from flows.alerts import Alert
from flows.ingest import extended, start_from, with_feedback
from flows.train import train_on
from models import gate, recipes
from models.gate import GateVerdict
from models.recipes import Recipe
from models.registry_reader import RegistryReader

log = logging.getLogger("digits.retrain")

LIMIT = "digits-retrain"
SLOT_SECONDS = 60  # for Prefect's answer: on SQLite its writers wait for each other, 10 s and more when it is busy
LEASE_SECONDS = 60  # the shortest that Prefect gives; after it, the slot of a killed retraining is free again
RETRAINED = "retrained"  # the mark of the last retraining's end


class Busy(RuntimeError):
    """Another retraining is under way."""


@flow(name="retrain")
def retrain(
    recipe: str | None = None, data: str | None = None, seed: int = 0, reason: str = "by hand", cooldown: bool = False
) -> str:
    """Take in new data, train a candidate, and promote it or say why not; the decision in a sentence.

    The recipe is the setting `DIGITS_RECIPE` and the data set the current one unless given. With `cooldown`, as for events,
    nothing is done for a while after the last retraining.
    """
    settings = load_settings()
    with one_at_a_time(), alert_on_failure(settings):
        crashed_runs.tag(reason)
        if cooldown and (rest := resting(settings)):
            return rest
        with record_finish(settings):
            check_policies(settings)
            clear_up(settings)
            chosen = recipes.find(recipe or settings.recipe).model_copy(update={"seed": seed})
            fingerprint = assemble_dataset(data, settings)
            version = trained_before(fingerprint, chosen, settings)
            if version is None:
                version = train_on(fingerprint, chosen, {"reason": reason})
            else:
                log.info("nothing new to learn: digits v%s has the same data, recipe, code and libraries", version)
                if settled := settled_before(version, settings):
                    log.info("%s", settled)
                    return settled
            judged, verdict = judge(version, fingerprint, recipes.floor(chosen.name), settings)
            apply_verdict(version, judged, verdict, settings)
    return f"digits v{version}: {verdict.sentence}"


@contextmanager
def record_finish(settings: Settings) -> Iterator[None]:
    """Note when a retraining ended, also one that failed, which the next event would start again at once; a killed one may go on."""

    def note() -> None:
        cooldowns.put(database.connect(settings.database_url), RETRAINED, datetime.now(UTC))

    try:
        yield
    except Exception:
        note()
        raise
    note()


def check_policies(settings: Settings) -> None:
    """Raises ValueError naming the setting of a policy that is none, before anything is trained."""
    policies: list[tuple[str, type[BaseModel], Mapping[str, Any]]] = [
        ("DIGITS_GATE", gate.GatePolicy, settings.gate),
        ("DIGITS_FEEDBACK", feedback.FeedbackPolicy, settings.feedback),
    ]
    for setting, policy, given in policies:
        try:
            policy.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            known = ", ".join(policy.model_fields)
            raise ValueError(
                f"{setting}: {'.'.join(map(str, first['loc']))} is {first['input']!r} ({first['msg']}); it takes {known}"
            ) from error


def resting(settings: Settings) -> str | None:
    """Why an event starts nothing yet; None when enough time has passed since the last retraining."""
    last = cooldowns.at(database.connect(settings.database_url), RETRAINED)
    again = last and last + timedelta(hours=settings.retrain_cooldown_hours)
    if again is None or datetime.now(UTC) >= again:
        return None
    sentence = (
        f"the last retraining ended at {last:%Y-%m-%d %H:%M} UTC, events start the next from {again:%Y-%m-%d %H:%M} on"
    )
    log.info("%s", sentence)
    return sentence


@contextmanager
def alert_on_failure(settings: Settings) -> Iterator[None]:
    """Tell the webhook of an error on the way, and pass it on."""
    try:
        yield
    except Exception as error:
        log.error("the retraining failed: %s", error)
        alert = Alert("retraining failed", type(error).__name__, f"The retraining failed: {error}")
        alerts.send(settings.alert_url, settings.database_url, alert, timedelta(hours=settings.alert_cooldown_hours))
        raise


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the only slot for retraining that Prefect gives out, on whichever machine; raises Busy when another has it."""
    busy = Busy("another retraining is under way; wait for its end, or cancel it in the Prefect UI")
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        if client.read_global_concurrency_limit_by_name(LIMIT).active_slots:
            raise busy
    with ExitStack() as held:
        try:
            held.enter_context(
                concurrency(LIMIT, occupy=1, timeout_seconds=SLOT_SECONDS, strict=True, lease_duration=LEASE_SECONDS)
            )
        except TimeoutError as error:
            raise busy from error
        yield


@task(cache_policy=NO_CACHE)
def clear_up(settings: Settings) -> None:
    """Mend what a retraining left that died: runs that look as if they went on, and a promotion without its record."""
    from models import promotion
    from models.model_store import ModelStore
    from models.registry import Registry

    registry = Registry(settings.mlflow_tracking_uri)
    crashed_runs.mark_crashed(registry, timedelta(seconds=LEASE_SECONDS))
    promotion.repair_ledger(
        registry, ModelStore(settings.mlflow_tracking_uri, settings.champions), database.connect(settings.database_url)
    )


@task(cache_policy=NO_CACHE)
def assemble_dataset(data: str | None, settings: Settings) -> str:
    """The fingerprint of the data to train on: the given source or the current data set, what lies in the inbox, and feedback.

    Files leave the inbox last, and labels once taken are read every time: whatever dies before is done again by the next
    retraining, to the same end.
    """
    current = datasets.current(settings.datasets)
    start = start_from.fn(data or "mnist", settings) if data or current is None else current
    taken = inbox.read_inbox(settings.inbox)
    start = extended(start, taken.labelled, ", ".join(taken.names), settings)
    counts = feedback.ingest_feedback(
        database.connect(settings.database_url), feedback.FeedbackPolicy.model_validate(settings.feedback)
    )
    if counts:
        log.info(
            "took %d labels from feedback: %s", counts.total(), ", ".join(f"{n} {part}" for part, n in counts.items())
        )
    if counts["quarantine"]:
        log.info("`digits audit --quarantine` shows the labels in quarantine")
    fingerprint = with_feedback(start, settings)
    datasets.set_current(settings.datasets, start)
    inbox.archive(taken, settings.inbox)
    return fingerprint


@task(cache_policy=NO_CACHE)
def trained_before(fingerprint: str, recipe: Recipe, settings: Settings) -> str | None:
    """A version that has these weights already, because its data, recipe, code and libraries are the same."""
    from models.registry import Registry

    return Registry(settings.mlflow_tracking_uri).trained_before(fingerprint, recipe)


def settled_before(version: str, settings: Settings) -> str | None:
    """Why there is nothing to judge: the version is the champion, or has been and was replaced; None where there is.

    What somebody rolled back must not come back by the next retraining on the same data.
    """
    if RegistryReader(settings.mlflow_tracking_uri).version() == version:
        return f"digits v{version} stays the champion: there is nothing new to learn"
    if entry := ledger.left(ledger.entries(database.connect(settings.database_url)), version):
        return (
            f"digits v{version} was the champion until the {entry.action} of v{entry.to_version} ({entry.why}) and does not come back "
            f"by itself: there is nothing new to learn; `digits promote {version}` brings it back"
        )
    return None


@task(cache_policy=NO_CACHE)
def judge(version: str, fingerprint: str, floor: float, settings: Settings) -> tuple[str | None, GateVerdict]:
    """Candidate against champion on the test images of the candidate's data set, and on labelled traffic.

    The champion's version, None before the first, and the verdict.
    """
    from models import candidate_comparison, promotion  # ONNX Runtime and scikit-learn
    from models.model_store import ModelStore
    from models.registry import Registry

    test = datasets.load(settings.datasets, fingerprint).test
    policy = gate.GatePolicy.model_validate(settings.gate)
    registry = Registry(settings.mlflow_tracking_uri)
    store = ModelStore(settings.mlflow_tracking_uri, settings.champions)
    current = store.registry.version()
    candidate = candidate_comparison.JudgedModel.fetch(store, version)
    if current is None:
        verdict = gate.judge_first(candidate.accuracy(test), floor, candidate.facts(test), policy)
    else:
        champion = candidate_comparison.JudgedModel.fetch(store, current)
        engine = database.connect(settings.database_url)
        traffic = feedback.audited_traffic(engine)
        samples = candidate_comparison.samples(test, traffic, candidate, champion, policy)
        before = promotion.last_evidence(registry, version, current)
        look = gate.next_look(samples, before)
        if look is None:
            reason = "there are less than twice as many labelled answers as when the two were compared last"
            return current, GateVerdict(gate.UNDECIDED, [reason], before)
        verdict = gate.judge(samples, candidate.facts(test), champion.facts(test), policy, look)
    promotion.record_verdict(registry, store, version, current, verdict)
    return current, verdict


@task(cache_policy=NO_CACHE)
def apply_verdict(version: str, judged: str | None, verdict: GateVerdict, settings: Settings) -> None:
    """Promote over the champion that was judged, or leave the champion where it is, undecided candidates in its shadow; the verdict on the Prefect run's page."""
    from models import promotion
    from models.model_store import ModelStore
    from models.registry import Registry

    _publish(version, verdict)
    registry = Registry(settings.mlflow_tracking_uri)
    store = ModelStore(settings.mlflow_tracking_uri, settings.champions)
    current = store.registry.version()
    if current not in (judged, version):
        log.warning(
            "digits v%s was judged against v%s, and v%s became the champion meanwhile: nothing changes; "
            "the next retraining judges it again",
            version,
            judged,
            current,
        )
    elif current == version:
        log.info("digits v%s is the champion already", version)
    elif verdict.decision != "promote":
        log.info("digits v%s: %s", version, verdict.sentence)
        if verdict.decision == gate.UNDECIDED:
            promotion.set_challenger(registry, store, version)
    else:
        engine = database.connect(settings.database_url)
        promotion.promote(registry, store, engine, version, "; ".join(verdict.reasons), verdict.evidence)


def _publish(version: str, verdict: GateVerdict) -> None:
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in verdict.evidence.items())
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    text = f"# digits v{version}: {verdict.decision}\n\n{reasons}\n\n| evidence | |\n|---|---|\n{rows}\n"
    create_markdown_artifact(text, key="gate", description=f"digits v{version}: {verdict.decision}")
