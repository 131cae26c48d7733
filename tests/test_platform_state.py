"""What the database tells of the platform becomes metrics; what is not known is no metric."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import wait_for
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine

from digits.storage import cooldowns, database, ledger, monitoring_results
from digits.storage.monitoring_results import MonitoringResult
from services import platform_state
from services.platform_state import PlatformCollector, PlatformPoller, PlatformState

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
UNKNOWN = MonitoringResult(
    version="3",
    at=NOON,
    drift="not enough data",
    severity="none",
    drifted_share=0.0,
    accuracy="not enough labels",
    labels=0,
    measured=None,
    low=None,
    high=None,
    least=0.97,
)
KNOWN = {"drift": "drift", "severity": "strong", "drifted_share": 0.25, "accuracy": "worse"}
MEASURED = {"labels": 70, "measured": 0.9, "low": 0.82, "high": 0.95}


def result(**changes: object) -> MonitoringResult:
    columns = {column.name: getattr(UNKNOWN, column.name) for column in MonitoringResult.__table__.columns}
    return MonitoringResult(**columns | changes)


def metrics(state: PlatformState) -> dict[str, float]:
    """The samples of a scrape with their labels, as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(PlatformCollector(lambda: state))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_nothing_is_told_of_what_is_not_known(engine: Engine) -> None:
    assert metrics(PlatformState()) == {}
    assert metrics(platform_state.read(engine, "3")) == {"digits_labels_waiting": 0}
    monitoring_results.put(engine, result())
    assert metrics(platform_state.read(engine, "3")) == {
        "digits_labels_waiting": 0,
        "digits_last_monitoring_timestamp_seconds": NOON.timestamp(),
        'digits_accuracy_expected{version="3"}': 0.97,
        'digits_accuracy_labels{version="3"}': 0,
    }


def test_the_results_of_the_served_version_are_told_and_no_others(engine: Engine) -> None:
    cooldowns.put(engine, cooldowns.RETRAINED, NOON)
    ledger.append(engine, "promotion", None, "3", "better", {})
    ledger.append(engine, "promotion", "3", "4", "better", {})
    promoted = ledger.append(engine, "rollback", "4", "3", "by hand", {})
    monitored = promoted.at + timedelta(hours=1)
    monitoring_results.put(engine, result(**KNOWN, **MEASURED, at=monitored))
    told = metrics(platform_state.read(engine, "3"))
    assert told == {
        'digits_champion_promoted_timestamp_seconds{version="3"}': promoted.at.timestamp(),
        'digits_drift{version="3"}': 1,
        'digits_drift_severity{version="3"}': 2,
        'digits_drifted_share{version="3"}': 0.25,
        'digits_accuracy{version="3"}': 0.9,
        'digits_accuracy_low{version="3"}': 0.82,
        'digits_accuracy_high{version="3"}': 0.95,
        'digits_accuracy_expected{version="3"}': 0.97,
        'digits_accuracy_labels{version="3"}': 70,
        'digits_accuracy_worse{version="3"}': 1,
        "digits_last_monitoring_timestamp_seconds": monitored.timestamp(),
        "digits_last_retraining_timestamp_seconds": NOON.timestamp(),
        "digits_labels_waiting": 0,
    }
    other = metrics(platform_state.read(engine, "4"))
    assert not any("accuracy" in name or "drift" in name for name in other)
    assert 'digits_champion_promoted_timestamp_seconds{version="4"}' in other


def test_the_poller_starts_without_a_database_and_stops_at_once() -> None:
    poller = PlatformPoller("postgresql+psycopg://digits@127.0.0.1:1/digits", lambda: "3")
    assert poller.state == PlatformState()
    started = datetime.now(UTC)
    poller.stop()
    assert (datetime.now(UTC) - started).total_seconds() < 4


def test_a_result_from_before_the_promotion_is_of_another_version_of_that_number(engine: Engine) -> None:
    monitoring_results.put(engine, result(**KNOWN, **MEASURED))
    ledger.append(engine, "promotion", None, "3", "of a new registry", {})
    assert not any("accuracy" in name or "drift" in name for name in metrics(platform_state.read(engine, "3")))


def test_the_poller_reads_and_keeps_what_it_read_during_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform_state, "POLL_SECONDS", 0.05)
    path = tmp_path / "digits.db"
    monitoring_results.put(database.connect(f"sqlite:///{path}"), result())
    poller = PlatformPoller(f"sqlite:///{path}", lambda: "3")
    wait_for(lambda: poller.state.monitored_at == NOON)
    path.write_bytes(b"no database any more" * 1000)
    time.sleep(0.5)
    poller.stop()
    assert poller.state.monitored_at == NOON
