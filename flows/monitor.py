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
from digits.settings import Settings, settings
from digits.storage import database, feedback, predictions
from digits.storage.predictions import Window
from flows import alerts
from flows.alerts import Alert

if TYPE_CHECKING:  # Evidently takes 7 s to import
    from monitoring.reports import Verdict, Written

log = logging.getLogger("digits.monitor")

UNITS = {"m": "minutes", "h": "hours", "d": "days"}
MOST = 10_000  # answers in one report
DRIFT, LABELS = "digits.drift.detected", "digits.labels.arrived"  # events that start a retraining


@flow(name="monitor")
def monitor(since: str = "24h") -> str:
    """Report drift and accuracy of the champion's answers in the last 30m, 24h or 7d, or since a moment; the verdict in words."""
    where = settings()
    version, begun, reference = load(where)
    until = datetime.now(UTC)
    start = max(begin(since, until), begun)
    window, labelled = read(version, start, until, where)
    verdict = judge(reference, window, labelled)
    written = write(version, start, until, reference, window, verdict, where)
    publish(version, verdict, written, where)
    tell(version, verdict, written, where)
    ask_for_retraining(version, verdict, where)
    clean(where)
    return verdict.words


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
def load(where: Settings, version: str | None = None) -> tuple[str, datetime, Reference]:
    """A version, the champion unless given: its number, when it was made, and its own reference sample, verified."""
    from models import champion  # ONNX Runtime

    uri, cache = where.mlflow_tracking_uri, where.champions
    found = champion.fetch_version(uri, version, cache) if version else champion.fetch(uri, "champion", cache)
    made = datetime.fromisoformat(found.card["created_at"])
    return found.version, made, champion.reference_of(found, cache)


@task(cache_policy=NO_CACHE)
def read(version: str, since: datetime, until: datetime, where: Settings) -> tuple[Window, Window]:
    """What the version answered in that time, and what of it was labelled; of more than `MOST` answers a sample each."""
    engine = database.connect(where.database_url)
    window, labelled = (
        predictions.read_window(engine, since, until, limit=MOST, version=version, labelled=only)
        for only in (False, True)
    )
    return window, labelled


@task(cache_policy=NO_CACHE)
def judge(reference: Reference, window: Window, labelled: Window) -> "Verdict":
    """Drift of the window and accuracy of what was labelled."""
    from monitoring import reports

    return reports.judge(reference, window, labelled=labelled)


@task(cache_policy=NO_CACHE)
def write(
    version: str,
    since: datetime,
    until: datetime,
    reference: Reference,
    window: Window,
    verdict: "Verdict",
    where: Settings,
) -> "Written":
    """The files in a folder named by the window, and a point in the history of the Evidently UI."""
    from monitoring import reports

    folder = where.reports / reports.folder_name(since, until, version)
    return reports.write(folder, where.workspace, reference, window, verdict)


@task(cache_policy=NO_CACHE)
def publish(version: str, verdict: "Verdict", written: "Written", where: Settings) -> None:
    """The verdict in the log, and with its pictures on the page of the Prefect run."""
    from monitoring import reports

    log.info("digits v%s, %d answers: %s", version, verdict.count, verdict.words)
    for advice in verdict.advice:
        log.info("%s", advice)
    if written.html:
        log.info("report: %s", written.html)
    history = f"http://{where.local_host}:{where.reports_port}"
    title = f"digits v{version}: {verdict.drift.verdict}"
    create_markdown_artifact(reports.markdown(version, verdict, written, history), key="drift", description=title)
    if written.pictures:
        picture = base64.b64encode(written.pictures.read_bytes()).decode()  # the UI cannot fetch a file of ours
        create_image_artifact(f"data:image/png;base64,{picture}", key="drift-pictures", description=title)


@task(cache_policy=NO_CACHE)
def tell(version: str, verdict: "Verdict", written: "Written", where: Settings) -> None:
    """Drift and lost accuracy to the webhook."""
    cooldown = timedelta(hours=where.alert_cooldown_hours)
    for alert in _alerts(version, verdict, {"report": str(written.html or written.verdict)}):
        alerts.send(where.alert_url, where.database_url, alert, cooldown)


@task(cache_policy=NO_CACHE)
def ask_for_retraining(version: str, verdict: "Verdict", where: Settings) -> None:
    """Events that the retraining waits for: drift, and enough labels that no retraining has taken."""
    resource = {"prefect.resource.id": f"digits.version.{version}", "prefect.resource.name": f"digits v{version}"}
    if verdict.drift.verdict == "drift":
        payload = {"reason": f"drift: {verdict.drift.words}", **_facts(verdict)}
        emit_event(DRIFT, resource=resource, payload=payload)
    waiting = feedback.waiting(database.connect(where.database_url))
    if waiting >= where.retrain_labels:
        emit_event(LABELS, resource=resource, payload={"reason": f"labels: {waiting} new ones", "waiting": waiting})


@task(cache_policy=NO_CACHE)
def clean(where: Settings) -> None:
    """Remove reports as old as forgotten answers."""
    from monitoring import reports

    removed = reports.remove_old(where.reports, where.workspace, datetime.now(UTC) - timedelta(days=where.keep_days))
    if removed:
        log.info("removed %d reports older than %g days", len(removed), where.keep_days)


def _alerts(version: str, verdict: "Verdict", links: dict[str, str]) -> list[Alert]:
    """The same causes, or a loss of the same version, are the same alert."""
    found = []
    about, details = f"digits v{version}", {"advice": list(verdict.advice), **_facts(verdict), **links}
    if verdict.drift.verdict == "drift":
        causes = ", ".join(sorted(cause.kind for cause in verdict.drift.causes))
        found.append(Alert("drift", f"{about}: {causes}", verdict.drift.words, details))
    if verdict.accuracy.verdict == "worse":
        found.append(Alert("accuracy", about, verdict.accuracy.words, details))
    return found


def _facts(verdict: "Verdict") -> dict[str, Any]:
    return {
        "severity": verdict.drift.severity,
        "count": verdict.count,
        "causes": [cause.kind for cause in verdict.drift.causes],
        "accuracy": verdict.accuracy.verdict,
    }
