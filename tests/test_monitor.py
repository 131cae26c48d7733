"""Who is told of what, and what the power of the detector is measured on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Files, Registry
from monitored import held_out, reference, window
from sqlalchemy import insert

from digits.data import datasets, perturbations
from digits.images import Split
from digits.reference import from_bytes
from digits.settings import Settings
from digits.storage import feedback, labels, ledger, monitoring_results, predictions, request_counts
from digits.storage.feedback import FeedbackPolicy
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch, new_ids
from digits.storage.request_counts import Total
from flows import monitor, version_history
from flows.monitor import alerts_of
from models.connections import Platform
from monitoring import reports
from monitoring.reports import MonitoringVerdict
from ops.detection_power import hold_out

REPORT = Path("var/reports/a/report.html")


def test_drift_and_lost_accuracy_are_two_alerts_and_plain_traffic_is_none() -> None:
    images, labels = held_out()
    plain = reports.assess(reference(), window(images[:300], labels[:300]))
    assert alerts_of("7", plain, REPORT) == []
    shifted = reports.assess(reference(), window(perturbations.shift(images[:300], 3), labels[:300]))
    found = alerts_of("7", shifted, REPORT)
    assert [(alert.event, alert.about) for alert in found] == [("drift", "digits v7: shift"), ("accuracy", "digits v7")]
    assert found[0].message == shifted.drift.message and found[1].message == shifted.accuracy.message
    assert found[0].details["report"] == str(REPORT)
    assert found[0].details["recommendations"] == list(shifted.recommendations)


def test_another_amount_of_the_same_cause_is_the_same_alert() -> None:
    images = held_out()[0][:300]
    about = {
        alerts_of("7", reports.assess(reference(), window(perturbations.shift(images, right))), REPORT)[0].about
        for right in (2, 3)
    }
    assert about == {"digits v7: shift"}


def test_power_is_measured_on_digits_that_are_not_in_the_reference() -> None:
    images, labels = held_out()
    test = Split(np.concatenate([reference().images, images]), np.concatenate([reference().labels, labels]))
    kept, others = hold_out(reference(), test)
    assert kept is reference()
    assert len(others) == len({image.tobytes() for image in images})


def test_of_a_small_data_set_half_of_the_reference_is_held_out() -> None:
    kept, others = hold_out(reference(), Split(reference().images, reference().labels))
    assert abs(len(kept) - len(others)) <= 1
    assert not np.isin(datasets.digests(kept.images), datasets.digests(others.images)).any()


CREATED = datetime(2026, 1, 2, 12, tzinfo=UTC)  # the champion, according to its card


@pytest.fixture
def platform(registry: Registry, champion_files: Files, tmp_path: Path) -> Platform:
    """A platform with a champion, v1, and an empty database."""
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    return Platform(Settings(home=tmp_path, mlflow_tracking_uri=registry.uri))


def audit(platform: Platform, days: range, per_day: int, wrong: int, client: str = "", version: str = "1") -> None:
    """Answers of these days after the champion was made, all in the audit sample and labelled, so many of a day wrong."""
    for day in days:
        probabilities = np.tile(np.eye(10, dtype=np.float32)[3], (per_day, 1))
        ids, at = new_ids(per_day), CREATED + timedelta(days=day)
        random = np.random.default_rng([day, *f"{client} {version}".encode()])
        images = random.integers(0, 256, (per_day, 28, 28), dtype=np.uint8)
        batch = PredictionBatch(ids, at, version, images, probabilities, "/classify", [client] * per_day)
        predictions.append(platform.engine, [batch], audit_sample_rate=1.0)
        given = [8 if n < wrong else 3 for n in range(per_day)]
        rows = [
            {"prediction_id": id, "label": label, "at": at, "source": AUDITOR}
            for id, label in zip(ids, given, strict=True)
        ]
        with platform.engine.begin() as connection:
            connection.execute(insert(labels.feedback), rows)


def monitored(platform: Platform, until: datetime) -> tuple[MonitoringVerdict, list[str]]:
    """The verdict on the 24 hours before, by the steps of the flow, and the events of its alerts."""
    model = monitor.load(platform)
    counted = version_history.count_traffic(platform, model.version, monitor.created_at(model), until)
    verdict, path = monitor.report(platform, model, (until - timedelta(hours=24), until), (), counted)
    return verdict, [alert.event for alert in alerts_of(model.version, verdict, path)]


def test_a_fall_is_told_by_ten_labels_a_day_also_when_the_window_has_none(platform: Platform) -> None:
    audit(platform, range(20), per_day=10, wrong=0)
    verdict, events = monitored(platform, CREATED + timedelta(days=20))
    assert (verdict.accuracy.verdict, events) == ("as expected", [])
    audit(platform, range(20, 27), per_day=10, wrong=5)
    verdict, events = monitored(platform, CREATED + timedelta(days=29))
    assert verdict.count == 0 and verdict.drift.verdict == "not enough data"
    assert (verdict.accuracy.verdict, events) == ("worse", ["accuracy"])
    assert str(verdict.accuracy.worse_since) in ("2026-01-21", "2026-01-22", "2026-01-23")
    assert MonitoringVerdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_the_result_is_stored_for_the_metrics_and_replaces_the_one_before(platform: Platform) -> None:
    verdict, _ = monitored(platform, CREATED + timedelta(hours=1))
    monitor.record(platform, "1", verdict)
    stored = monitoring_results.of_version(platform.engine, "1")
    assert stored is not None and (stored.drift, stored.accuracy) == ("not enough data", "not enough labels")
    assert (stored.labels, stored.measured) == (0, None) and stored.least > 0.5
    audit(platform, range(20), per_day=10, wrong=5)
    verdict, _ = monitored(platform, CREATED + timedelta(days=20))
    monitor.record(platform, "1", verdict)
    stored, newest = monitoring_results.of_version(platform.engine, "1"), verdict.accuracy.newest
    assert stored is not None and newest is not None and stored.accuracy == "worse"
    assert (stored.labels, stored.measured, stored.low, stored.high) == (newest.labels, 0.5, newest.low, newest.high)
    assert monitoring_results.last_at(platform.engine) == stored.at
    empty = verdict.accuracy.model_copy(update={"newest": None})
    monitor.record(platform, "1", verdict.model_copy(update={"accuracy": empty}))
    stored = monitoring_results.of_version(platform.engine, "1")
    assert stored is not None and (stored.labels, stored.measured) == (0, None)
    assert monitoring_results.of_version(platform.engine, "2") is None


def test_labels_count_after_the_log_forgot_their_answers_and_those_of_other_versions_do_not(platform: Platform) -> None:
    audit(platform, range(5), per_day=10, wrong=8)
    audit(platform, range(5, 10), per_day=10, wrong=0, version="2")
    feedback.ingest_feedback(platform.engine, FeedbackPolicy())
    assert predictions.delete_before(platform.engine, CREATED + timedelta(days=4)) == 40
    verdict, _ = monitored(platform, CREATED + timedelta(days=10))
    newest = verdict.accuracy.newest
    assert verdict.accuracy.verdict == "worse" and newest is not None
    assert newest.labels == 50 and newest.value == pytest.approx(0.2) and str(newest.since) == "2026-01-02"


def test_many_labels_of_one_client_are_one_observation_a_day(platform: Platform) -> None:
    for client in ("ann", "ben", "eva"):
        audit(platform, range(1), per_day=30, wrong=12, client=client)
    verdict, _ = monitored(platform, CREATED + timedelta(days=1))
    assert verdict.accuracy.verdict == "as expected" and verdict.accuracy.newest is not None
    assert verdict.accuracy.newest.labels == 90 and verdict.accuracy.newest.high > 0.95


def test_a_champion_that_was_promoted_on_harder_traffic_is_not_worse_for_it(platform: Platform) -> None:
    audit(platform, range(20), per_day=10, wrong=3)
    assert monitored(platform, CREATED + timedelta(days=20))[0].accuracy.verdict == "worse"
    evidence = {"traffic: images": 400, "traffic: accuracy": 0.72}
    ledger.append(platform.engine, "promotion", "5", "1", "better on traffic", evidence)
    ledger.append(platform.engine, "rollback", "6", "1", "by hand", {})
    verdict, events = monitored(platform, CREATED + timedelta(days=20))
    assert (verdict.accuracy.verdict, events) == ("as expected", [])
    assert 0.6 < verdict.accuracy.least < 0.72


def test_silence_and_refusals_are_alerts_without_any_answer_in_the_window(platform: Platform) -> None:
    until = CREATED + timedelta(days=40)
    for hour in range(-20 * 24, -24):
        request_counts.append(platform.engine, until + timedelta(hours=hour), [Total("/classify", 200, 2, 2, 0)])
    assert monitored(platform, until - timedelta(hours=24))[1] == []
    verdict, events = monitored(platform, until)
    assert (verdict.count, events) == (0, ["no traffic"])
    assert verdict.message.startswith(
        "No request was answered for 24 hours, although the same hours of the weeks before"
    )
    for hour in range(-24, 0):
        request_counts.append(platform.engine, until + timedelta(hours=hour), [Total("/classify", 422, 2, 0, 0)])
    verdict, events = monitored(platform, until)
    assert events == ["no traffic", "refusals"] and "(422 Unprocessable" in verdict.message
    page = reports.markdown("1", verdict, REPORT, "http://127.0.0.1:8000")
    assert "| requests | 48 |" in page and "| hours since the last answer | 24 |" in page
    figures = {row["question"]: (row["verdict"], row["figures"]) for row in monitor.figures(verdict)}
    assert figures["traffic"] == ("no traffic, refusals", "48 requests in 24 hours")
    assert figures["drift"] == ("not enough data", "") and figures["answers"] == ("0", "")


def test_the_page_of_a_run_has_the_figures_and_leads_to_the_report_and_the_version(
    platform: Platform, champion_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(monitor.tasks, "publish", lambda *arguments: shown.append(arguments))
    sample, until = from_bytes(champion_files["reference.npz"]), CREATED + timedelta(days=1)
    at, ids = until - timedelta(hours=1), new_ids(len(sample.images))
    batch = PredictionBatch(ids, at, "1", sample.images, sample.probabilities, "/classify")
    predictions.append(platform.engine, [batch], audit_sample_rate=0)
    model = monitor.load(platform)
    verdict, path = monitor.report(platform, model, (until - timedelta(hours=24), until))
    monitor.publish(platform.settings, "1", verdict, path)
    ((*_, figures, links),) = shown
    expected = f"expected {verdict.accuracy.expected}"
    assert figures[0] == {"question": "drift", "verdict": "no drift", "figures": ""}
    assert figures[2] == {"question": "accuracy", "verdict": "not enough labels", "figures": expected}
    assert links["mlflow"][1] == platform.settings.version_url("1")
    page = links["evidently"][1].removeprefix("http://127.0.0.1:8000/projects/")
    project, report = page.split("/reports/")
    workspace = platform.settings.workspace
    assert any(report in file.name for file in workspace.glob(f"{project}/**/*"))


@pytest.mark.parametrize("count", [200, 199])
def test_one_monitoring_starts_one_retraining(platform: Platform, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would start at once, and Prefect cancel one of them."""
    emitted: list[tuple[str, str]] = []
    monkeypatch.setattr(monitor, "emit_event", lambda event, payload, **_: emitted.append((event, payload["report"])))
    audit(platform, range(1), count, wrong=0)
    images, labels = held_out()
    for seen in (images[:300], perturbations.shift(images[:300], 3)):
        verdict = reports.assess(reference(), window(seen, labels[:300]))
        monitor.emit_events(platform, "1", verdict, REPORT)
    labelled = [(monitor.LABELS_EVENT, "")] if count == 200 else []
    assert emitted == [*labelled, (monitor.DRIFT_EVENT, "a")]


def test_a_fresh_platform_has_no_alert(platform: Platform) -> None:
    verdict, events = monitored(platform, CREATED + timedelta(days=9))
    assert (verdict.traffic and verdict.traffic.requests, events) == (0, [])
