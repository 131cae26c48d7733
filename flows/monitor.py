"""`digits monitor`: the champion's latest answers against what is normal for it; a report, a verdict, alerts and events."""

import base64
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.events import emit_event

from digits.settings import Settings, local_url
from digits.storage import feedback, monitoring_results, predictions
from digits.storage.monitoring_results import MonitoringResult
from digits.storage.predictions import PredictionWindow
from flows import alerts, tasks, version_history
from flows.alerts import Alert
from flows.tasks import server_task, task
from models.connections import Platform
from monitoring import baseline, pictures, reports, samples, windows
from monitoring.reports import Expected, MonitoringVerdict
from monitoring.traffic import Traffic
from monitoring.windows import TimeRange

if TYPE_CHECKING:  # ONNX Runtime takes 1 s to import
    from models.model_store import VerifiedModel

log = logging.getLogger("digits.monitor")

MAX_ANSWERS = 10_000  # in one report
DRIFT_EVENT, LABELS_EVENT = "digits.drift.detected", "digits.labels.arrived"  # both start a retraining


@flow(name="monitor")
def monitor(since: str = "24h") -> str:
    """Report drift and accuracy of the champion's answers in the last 30m, 24h or 7d, or since a time. Returns the verdict in words."""
    platform, until = Platform(), datetime.now(UTC)
    model = server_task(load)(platform)
    version = model.version
    window, notes = server_task(choose_window)(platform, model, since, until)
    counted = server_task(version_history.count_traffic)(platform, version, created_at(model), until)
    verdict, path = server_task(report)(platform, model, window, notes, counted)
    publish(platform.settings, version, verdict, path)
    for alert in alerts_of(version, verdict, path):
        task(alerts.send)(platform.settings, alert)
    server_task(emit_events)(platform, version, verdict, path)
    server_task(record)(platform, version, verdict)
    server_task(update_disagreements)(platform)
    task(remove_old_reports)(platform.settings)
    return verdict.message


def load(platform: Platform, version: str | None = None) -> "VerifiedModel":
    """A version, the champion unless given, verified."""
    return platform.models.fetch_version(version) if version else platform.models.fetch()


def created_at(model: "VerifiedModel") -> datetime:
    """When the version was registered, UTC."""
    return datetime.fromisoformat(model.card["created_at"])


def choose_window(
    platform: Platform, model: "VerifiedModel", since: str, until: datetime
) -> tuple[TimeRange, tuple[str, ...]]:
    """The time since then, of this version and its baseline, and a sentence where a duration holds too few answers.

    Such a window goes back until it holds enough, by 30 days at most.
    """
    accepted = baseline.current(platform.engine, model.version, until)
    earliest = max(created_at(model), accepted.since) if accepted else created_at(model)
    start = max(windows.parse_since(since, until), earliest)
    if not windows.is_duration(since):
        return (start, until), ()
    enough = predictions.start_of_newest(platform.engine, baseline.ENOUGH, until, model.version)
    wider = min(start, max(enough or earliest, earliest, until - baseline.MAX_AGE))
    if wider == start:
        return (start, until), ()
    few = f"There are fewer than {baseline.ENOUGH} answers in {since}, so the window goes back to {wider:%Y-%m-%d %H:%M} UTC."
    return (wider, until), (few,)


def report(
    platform: Platform,
    model: "VerifiedModel",
    window: TimeRange,
    notes: tuple[str, ...] = (),
    counted: Traffic | None = None,
) -> tuple[MonitoringVerdict, Path]:
    """Report on the version's answers in the window, of more than `MAX_ANSWERS` on a sample. Returns the verdict and the report's path.

    The report's folder is named after the window, and the history of the Evidently UI gets a point.
    """
    answers, labelled = (
        predictions.read_window(platform.engine, *window, limit=MAX_ANSWERS, version=model.version, labelled=only)
        for only in (False, True)
    )
    expected = expectation(platform, model, answers, window[1], notes)
    log.info("comparing %d answers of digits v%s with what is normal …", len(answers), model.version)
    history = version_history.audited_answers(platform, model.version, created_at(model), window[1])
    folder = platform.settings.home / "reports" / reports.folder_name(*window, model.version)
    workspace = platform.settings.workspace
    return reports.write(folder, workspace, model.reference, answers, labelled, expected, history, counted)


def expectation(
    platform: Platform, model: "VerifiedModel", answers: PredictionWindow, at: datetime, notes: tuple[str, ...]
) -> Expected:
    """The version's reference sample and its baseline at a time, each with as many pictures as the answers have."""
    threshold = model.digit_threshold
    window, _ = samples.distinct(samples.of_window(answers, threshold))
    tested = pictures.by_route(
        model.reference, window, model.predict_with_rejection, platform.settings.home / "pictures"
    )
    training = samples.match_routes(window, tested)
    accepted = baseline.current(platform.engine, model.version, at)
    if accepted is None:
        return Expected(training, None, notes, threshold)
    found = baseline.read(platform.engine, accepted, model.predict_with_rejection)
    period = f"{accepted.period} UTC"
    if found is None:
        gone = f"The log has too few answers left of the baseline ({period}), so the reference sample takes its place."
        return Expected(training, None, (*notes, gone), threshold)
    normal = samples.match_routes(window, samples.split_routes(found), tested)
    return Expected(training, normal, (*notes, f"The baseline is the traffic from {period}."), threshold)


def publish(settings: Settings, version: str, verdict: MonitoringVerdict, path: Path) -> None:
    """Log the verdict, and show it with its image on the page of the Prefect run."""
    summary = f"digits v{version}, {verdict.count} answers: {verdict.message}"
    for line in (summary, *verdict.recommendations, f"report: {path}"):
        log.info("%s", line)
    history = local_url(settings.private_host, settings.reports_port)
    images, png = path.with_name(reports.IMAGES), None
    # Embedded, because the Prefect UI cannot read files of this machine.
    if images.exists():
        png = f"data:image/png;base64,{base64.b64encode(images.read_bytes()).decode()}"
    text = reports.markdown(version, verdict, path, history)
    links = {
        "evidently": ("report in the Evidently UI", f"{history}{reports.ui_path(path.parent, settings.workspace)}"),
        "mlflow": (f"digits v{version} in MLflow", settings.version_url(version)),
    }
    tasks.publish("drift", f"digits v{version}: {verdict.drift.verdict}", text, png, figures(verdict), links)


def figures(verdict: MonitoringVerdict) -> list[dict[str, str]]:
    """What a person looks at first, as a table: each verdict with its figures."""
    found, traffic = verdict.accuracy, verdict.traffic
    measured = {"audit sample": found.audited, "labelled answers": found.labelled, "expected": found.expected}
    drifted = sum(column.drifted for column in verdict.drift.columns)
    changed = f"{drifted} of {len(verdict.drift.columns)} columns, {verdict.drift.severity}" if drifted else ""
    period = f"{verdict.since:%Y-%m-%d %H:%M} to {verdict.until:%Y-%m-%d %H:%M} UTC" if verdict.since else ""
    rows = {
        "drift": (verdict.drift.verdict, changed),
        "different from training": (verdict.training_drift.verdict, ""),
        "accuracy": (found.verdict, ", ".join(f"{name} {share}" for name, share in measured.items() if share)),
        "answers": (f"{verdict.count:,}", period),
    }
    if traffic:
        problems = ", ".join(problem.event for problem in traffic.problems)
        rows["traffic"] = (problems or "as usual", f"{traffic.requests:,} requests in 24 hours")
    return [{"question": name, "verdict": says, "figures": figure} for name, (says, figure) in rows.items()]


def record(platform: Platform, version: str, verdict: MonitoringVerdict) -> None:
    """Store what the service's metrics tell of drift and accuracy."""
    drift, accuracy, newest = verdict.drift, verdict.accuracy, verdict.accuracy.newest
    result = MonitoringResult(
        version=version,
        at=datetime.now(UTC),
        drift=drift.verdict,
        severity=drift.severity,
        drifted_share=drift.drifted_share,
        accuracy=accuracy.verdict,
        labels=newest.labels if newest else 0,
        measured=newest.value if newest else None,
        low=newest.low if newest else None,
        high=newest.high if newest else None,
        least=accuracy.least,
    )
    monitoring_results.put(platform.engine, result)


def update_disagreements(platform: Platform) -> None:
    """Queue the answers that the challenger would have given otherwise for labelling."""
    from models import disagreement

    disagreement.update(platform)


def emit_events(platform: Platform, version: str, verdict: MonitoringVerdict, path: Path) -> None:
    """Emit the event that starts a retraining: drift, with the name of its report, or else enough labels that no retraining has ingested.

    One of them, because two retrainings would start at the same time, and each ingests all labels.
    """
    resource = {"prefect.resource.id": f"digits.version.{version}", "prefect.resource.name": f"digits v{version}"}
    if verdict.drift.verdict == "drift":
        payload = {"reason": f"drift: {verdict.drift.message}", "report": path.parent.name, **_facts(verdict)}
        emit_event(DRIFT_EVENT, resource=resource, payload=payload)
    elif (waiting := feedback.waiting(platform.engine)) >= platform.settings.retrain_labels:
        payload = {"reason": f"labels: {waiting} new ones", "report": "", "waiting": waiting}
        emit_event(LABELS_EVENT, resource=resource, payload=payload)


def remove_old_reports(settings: Settings) -> None:
    """Remove reports of answers that the prediction log no longer keeps."""
    before = datetime.now(UTC) - timedelta(days=settings.retention_days)
    if removed := reports.remove_old(settings.home / "reports", settings.workspace, before):
        log.info("removed %d reports older than %g days", len(removed), settings.retention_days)


def alerts_of(version: str, verdict: MonitoringVerdict, path: Path) -> list[Alert]:
    """The alerts of a verdict; two with the same explanations, or about the same loss or traffic of a version, are the same alert."""
    about = f"digits v{version}"
    details = {"recommendations": list(verdict.recommendations), **_facts(verdict), "report": str(path)}
    found = []
    if verdict.drift.verdict == "drift":
        explanations = ", ".join(sorted(details["explanations"]))
        found.append(Alert("drift", f"{about}: {explanations}", verdict.drift.message, details))
    if verdict.accuracy.verdict == "worse":
        found.append(Alert("accuracy", about, verdict.accuracy.message, details))
    problems = verdict.traffic.problems if verdict.traffic else ()
    return [*found, *(Alert(problem.event, about, problem.message, details) for problem in problems)]


def _facts(verdict: MonitoringVerdict) -> dict[str, Any]:
    return {
        "severity": verdict.drift.severity,
        "count": verdict.count,
        "explanations": [explanation.perturbation for explanation in verdict.drift.explanations],
        "accuracy": verdict.accuracy.verdict,
    }
