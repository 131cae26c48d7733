"""`digits monitor`: the latest answers of the champion against what it was tested on; a report, a verdict, and who is told."""

import base64
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from digits.reference import Reference
from digits.settings import Settings, load_settings
from digits.storage import database, feedback, predictions
from digits.storage.predictions import Window
from flows import alerts
from flows.alerts import Alert

if TYPE_CHECKING:  # Evidently takes 7 s to import
    from monitoring.reports import MonitoringVerdict, ReportFiles

log = logging.getLogger("digits.monitor")

UNITS = {"m": "minutes", "h": "hours", "d": "days"}
MOST = 10_000  # answers in one report
DRIFT, LABELS = "digits.drift.detected", "digits.labels.arrived"  # events that start a retraining


@flow(name="monitor")
def monitor(since: str = "24h") -> str:
    """Report drift and accuracy of the champion's answers in the last 30m, 24h or 7d, or since a moment; the verdict in words."""
    settings = load_settings()
    version, begun, reference = load(settings)
    until = datetime.now(UTC)
    start = max(begin(since, until), begun)
    window, labelled = read(version, start, until, settings)
    verdict = judge(reference, window, labelled)
    written = write(version, start, until, reference, window, verdict, settings)
    publish(version, verdict, written, settings)
    tell(version, verdict, written, settings)
    ask_for_retraining(version, verdict, settings)
    clean(settings)
    return verdict.message


def begin(since: str, until: datetime) -> datetime:
    """When a window of `24h`, or one since `2026-01-05T08:00`, begins; raises ValueError."""
    return until - duration(since) if re.fullmatch(r"\d+\w", since) else moment(since)


def moment(text: str) -> datetime:
    """The time that `2026-01-05` or `2026-01-05T08:00` stands for, UTC unless it says otherwise; raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"cannot read {text!r} as a day or moment; write it like 24h, 2026-01-05 or 2026-01-05T08:00"
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def duration(text: str) -> timedelta:
    """The time that `30m`, `24h` or `7d` stands for; raises ValueError."""
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if not match or not int(match[1]):
        raise ValueError(f"cannot read {text!r} as a time; write it like 30m, 24h or 7d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


@task(cache_policy=NO_CACHE)
def load(settings: Settings, version: str | None = None) -> tuple[str, datetime, Reference]:
    """A version, the champion unless given: its number, when it was made, and its own reference sample, verified."""
    from models.model_store import ModelStore  # ONNX Runtime

    store = ModelStore(settings.mlflow_tracking_uri, settings.champions)
    found = store.fetch_version(version) if version else store.fetch()
    made = datetime.fromisoformat(found.card["created_at"])
    return found.version, made, store.reference(found)


@task(cache_policy=NO_CACHE)
def read(version: str, since: datetime, until: datetime, settings: Settings) -> tuple[Window, Window]:
    """What the version answered in that time, and what of it was labelled; of more than `MOST` answers a sample each."""
    engine = database.connect(settings.database_url)
    window, labelled = (
        predictions.read_window(engine, since, until, limit=MOST, version=version, labelled=only)
        for only in (False, True)
    )
    return window, labelled


@task(cache_policy=NO_CACHE)
def judge(reference: Reference, window: Window, labelled: Window) -> "MonitoringVerdict":
    """Drift of the window and accuracy of what was labelled."""
    from monitoring import reports

    return reports.assess(reference, window, labelled=labelled)


@task(cache_policy=NO_CACHE)
def write(
    version: str,
    since: datetime,
    until: datetime,
    reference: Reference,
    window: Window,
    verdict: "MonitoringVerdict",
    settings: Settings,
) -> "ReportFiles":
    """The files in a folder named by the window, and a point in the history of the Evidently UI."""
    from monitoring import reports

    folder = settings.reports / reports.folder_name(since, until, version)
    return reports.write(folder, settings.workspace, reference, window, verdict)


@task(cache_policy=NO_CACHE)
def publish(version: str, verdict: "MonitoringVerdict", written: "ReportFiles", settings: Settings) -> None:
    """The verdict in the log, and with its pictures on the page of the Prefect run."""
    from monitoring import reports

    log.info("digits v%s, %d answers: %s", version, verdict.count, verdict.message)
    for recommendation in verdict.recommendations:
        log.info("%s", recommendation)
    if written.html:
        log.info("report: %s", written.html)
    history = f"http://{settings.local_host}:{settings.reports_port}"
    title = f"digits v{version}: {verdict.drift.verdict}"
    create_markdown_artifact(reports.markdown(version, verdict, written, history), key="drift", description=title)
    if written.images:
        picture = base64.b64encode(written.images.read_bytes()).decode()  # the UI cannot fetch a file of ours
        create_image_artifact(f"data:image/png;base64,{picture}", key="drift-images", description=title)


@task(cache_policy=NO_CACHE)
def tell(version: str, verdict: "MonitoringVerdict", written: "ReportFiles", settings: Settings) -> None:
    """Drift and lost accuracy to the webhook."""
    cooldown = timedelta(hours=settings.alert_cooldown_hours)
    for alert in _alerts(version, verdict, {"report": str(written.html or written.verdict)}):
        alerts.send(settings.alert_url, settings.database_url, alert, cooldown)


@task(cache_policy=NO_CACHE)
def ask_for_retraining(version: str, verdict: "MonitoringVerdict", settings: Settings) -> None:
    """Events that the retraining waits for: drift, and enough labels that no retraining has taken."""
    resource = {"prefect.resource.id": f"digits.version.{version}", "prefect.resource.name": f"digits v{version}"}
    if verdict.drift.verdict == "drift":
        payload = {"reason": f"drift: {verdict.drift.message}", **_facts(verdict)}
        emit_event(DRIFT, resource=resource, payload=payload)
    waiting = feedback.waiting(database.connect(settings.database_url))
    if waiting >= settings.retrain_labels:
        emit_event(LABELS, resource=resource, payload={"reason": f"labels: {waiting} new ones", "waiting": waiting})


@task(cache_policy=NO_CACHE)
def clean(settings: Settings) -> None:
    """Remove reports as old as forgotten answers."""
    from monitoring import reports

    removed = reports.remove_old(
        settings.reports, settings.workspace, datetime.now(UTC) - timedelta(days=settings.retention_days)
    )
    if removed:
        log.info("removed %d reports older than %g days", len(removed), settings.retention_days)


def _alerts(version: str, verdict: "MonitoringVerdict", links: dict[str, str]) -> list[Alert]:
    """The same explanations, or a loss of the same version, are the same alert."""
    found = []
    about, details = (
        f"digits v{version}",
        {"recommendations": list(verdict.recommendations), **_facts(verdict), **links},
    )
    if verdict.drift.verdict == "drift":
        explanations = ", ".join(sorted(one.perturbation for one in verdict.drift.explanations))
        found.append(Alert("drift", f"{about}: {explanations}", verdict.drift.message, details))
    if verdict.accuracy.verdict == "worse":
        found.append(Alert("accuracy", about, verdict.accuracy.message, details))
    return found


def _facts(verdict: "MonitoringVerdict") -> dict[str, Any]:
    return {
        "severity": verdict.drift.severity,
        "count": verdict.count,
        "explanations": [one.perturbation for one in verdict.drift.explanations],
        "accuracy": verdict.accuracy.verdict,
    }
