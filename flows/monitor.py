"""`digits monitor`: the champion's latest answers against its test images; a report, a verdict, alerts and events."""

import base64
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.events import emit_event

from digits.reference import Reference
from digits.settings import Settings, local_url
from digits.storage import feedback, predictions
from digits.storage.predictions import Window as Answers
from flows import alerts, tasks
from flows.alerts import Alert
from flows.connections import Platform
from flows.tasks import server_task, task
from monitoring import windows
from monitoring.windows import Window

if TYPE_CHECKING:  # Evidently takes 7 s to import
    from monitoring.reports import MonitoringVerdict, ReportFiles

log = logging.getLogger("digits.monitor")

MAX_ANSWERS = 10_000  # in one report
DRIFT_EVENT, LABELS_EVENT = "digits.drift.detected", "digits.labels.arrived"  # both start a retraining


@flow(name="monitor")
def monitor(since: str = "24h") -> str:
    """Report drift and accuracy of the champion's answers in the last 30m, 24h or 7d, or since a moment; the verdict in words."""
    platform, until = Platform(), datetime.now(UTC)
    version, created_at, reference = server_task(load)(platform)
    window = max(windows.begin(since, until), created_at), until
    answers, labelled = server_task(read)(platform, version, window)
    verdict = task(judge)(reference, answers, labelled)
    written = task(write)(platform.settings, version, window, reference, answers, verdict)
    publish(platform.settings, version, verdict, written)
    task(send_alerts)(platform.settings, version, verdict, written)
    server_task(emit_events)(platform, version, verdict)
    task(remove_old_reports)(platform.settings)
    return verdict.message


def load(platform: Platform, version: str | None = None) -> tuple[str, datetime, Reference]:
    """A version, the champion unless given: its number, when it was registered, and its reference sample, verified."""
    store = platform.models
    found = store.fetch_version(version) if version else store.fetch()
    return found.version, datetime.fromisoformat(found.card["created_at"]), store.reference(found)


def read(platform: Platform, version: str, window: Window) -> tuple[Answers, Answers]:
    """The version's answers in the window and the labelled ones among them; of more than `MAX_ANSWERS`, a sample."""
    answers, labelled = (
        predictions.read_window(platform.engine, *window, limit=MAX_ANSWERS, version=version, labelled=only)
        for only in (False, True)
    )
    return answers, labelled


def judge(reference: Reference, answers: Answers, labelled: Answers) -> "MonitoringVerdict":
    """Drift of the answers and accuracy of the labelled ones."""
    from monitoring import reports

    return reports.assess(reference, answers, labelled=labelled)


def write(
    settings: Settings,
    version: str,
    window: Window,
    reference: Reference,
    answers: Answers,
    verdict: "MonitoringVerdict",
) -> "ReportFiles":
    """Write the report into a folder named after the window, and a point into the history of the Evidently UI."""
    from monitoring import reports

    folder = settings.home / "reports" / reports.folder_name(*window, version)
    return reports.write(folder, settings.workspace, reference, answers, verdict)


def publish(settings: Settings, version: str, verdict: "MonitoringVerdict", written: "ReportFiles") -> None:
    """Log the verdict, and show it with its figures on the page of the Prefect run."""
    from monitoring import reports

    report = [f"report: {written.html}"] if written.html else []
    for line in (f"digits v{version}, {verdict.count} answers: {verdict.message}", *verdict.recommendations, *report):
        log.info("%s", line)
    history = local_url(settings.private_host, settings.reports_port)
    png = None
    if written.images:  # embedded, because the Prefect UI cannot read files of this machine
        png = f"data:image/png;base64,{base64.b64encode(written.images.read_bytes()).decode()}"
    text = reports.markdown(version, verdict, written, history)
    tasks.publish("drift", f"digits v{version}: {verdict.drift.verdict}", text, png)


def send_alerts(settings: Settings, version: str, verdict: "MonitoringVerdict", written: "ReportFiles") -> None:
    """Send drift and lost accuracy to the webhook."""
    cooldown = timedelta(hours=settings.alert_cooldown_hours)
    for alert in alerts_of(version, verdict, {"report": str(written.html or written.verdict)}):
        alerts.send(settings.alert_url, settings.database_url, alert, cooldown)


def emit_events(platform: Platform, version: str, verdict: "MonitoringVerdict") -> None:
    """Emit the events that start a retraining: drift, and enough labels that no retraining has ingested."""
    resource = {"prefect.resource.id": f"digits.version.{version}", "prefect.resource.name": f"digits v{version}"}
    if verdict.drift.verdict == "drift":
        payload = {"reason": f"drift: {verdict.drift.message}", **_facts(verdict)}
        emit_event(DRIFT_EVENT, resource=resource, payload=payload)
    waiting = feedback.waiting(platform.engine)
    if waiting >= platform.settings.retrain_labels:
        payload = {"reason": f"labels: {waiting} new ones", "waiting": waiting}
        emit_event(LABELS_EVENT, resource=resource, payload=payload)


def remove_old_reports(settings: Settings) -> None:
    """Remove reports of answers that the prediction log no longer keeps."""
    from monitoring import reports

    before = datetime.now(UTC) - timedelta(days=settings.retention_days)
    if removed := reports.remove_old(settings.home / "reports", settings.workspace, before):
        log.info("removed %d reports older than %g days", len(removed), settings.retention_days)


def alerts_of(version: str, verdict: "MonitoringVerdict", links: Mapping[str, str]) -> list[Alert]:
    """The alerts of a verdict; two with the same explanations, or with a loss of the same version, are the same alert."""
    about = f"digits v{version}"
    details = {"recommendations": list(verdict.recommendations), **_facts(verdict), **links}
    found = []
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
