"""What the platform last found about the served version, read from the database in the background, and its metrics."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from digits.storage import cooldowns, database, feedback, ledger, monitoring_results
from digits.storage.monitoring_results import MonitoringResult

if TYPE_CHECKING:  # decides at its import whether metrics are shared
    from prometheus_client.core import GaugeMetricFamily

log = logging.getLogger("digits.service")

POLL_SECONDS = 15.0
SEVERITIES = ("none", "slight", "strong")


@dataclass(frozen=True)
class PlatformState:
    """What is known; None for what has not happened yet. Times are UTC."""

    version: str | None = None  # that is served
    result: MonitoringResult | None = None  # of the version
    promoted_at: datetime | None = None
    monitored_at: datetime | None = None
    retrained_at: datetime | None = None
    labels_waiting: int | None = None


class PlatformPoller:
    """Reads the state from the database in a thread of its own; while that is unreachable, the last one read stays."""

    def __init__(self, database_url: str, version: Callable[[], str | None]) -> None:
        self.state = PlatformState()
        self._url, self._version = database_url, version
        self._engine: Engine | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="platform-state", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(5)
        if self._engine is not None:
            self._engine.dispose()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._engine is None:
                    self._engine = database.connect(self._url, busy_seconds=2)
                self.state = read(self._engine, self._version())
            # The thread must survive every error, so that it sees the database return.
            except Exception as error:
                log.debug("the state of the platform cannot be read: %s", error)
            self._stop.wait(POLL_SECONDS)


def read(engine: Engine, version: str | None) -> PlatformState:
    """The state of the platform that serves this version.

    A new registry counts from 1 again, so results from before the version's promotion are of another one.
    """
    promoted_at = ledger.promoted_at(engine, version) if version else None
    result = monitoring_results.of_version(engine, version) if version else None
    return PlatformState(
        version,
        result if result and (promoted_at is None or result.at >= promoted_at) else None,
        promoted_at,
        monitoring_results.last_at(engine),
        cooldowns.at(engine, cooldowns.RETRAINED),
        feedback.waiting(engine),
    )


class PlatformCollector:
    """The metrics of a state, for a registry of prometheus_client: those that are not known are not there."""

    def __init__(self, state: Callable[[], PlatformState]) -> None:
        self._state = state

    def collect(self) -> Iterator["GaugeMetricFamily"]:
        """The known metrics; those of a version have its number as their label."""
        from prometheus_client.core import GaugeMetricFamily

        state = self._state()
        of_version = _promoted(state) | (_measured(state.result) if state.result else {})
        of_platform = {
            "digits_last_monitoring_timestamp_seconds": ("Last monitoring.", _seconds(state.monitored_at)),
            "digits_last_retraining_timestamp_seconds": ("End of the last retraining.", _seconds(state.retrained_at)),
            "digits_labels_waiting": ("Labels that no retraining has ingested.", state.labels_waiting),
        }
        for label, metrics in ((state.version, of_version), (None, of_platform)):
            for name, (documentation, value) in metrics.items():
                if value is not None:
                    family = GaugeMetricFamily(name, documentation, labels=["version"] if label else [])
                    family.add_metric([label] if label else [], value)
                    yield family


Values = dict[str, tuple[str, float | None]]


def _promoted(state: PlatformState) -> Values:
    promoted = _seconds(state.promoted_at)
    return {"digits_champion_promoted_timestamp_seconds": ("When the served version became champion.", promoted)}


def _measured(result: MonitoringResult) -> Values:
    """Drift and accuracy; None where there is not enough data or labels for a verdict."""
    has_verdict = result.drift != "not enough data"
    is_worse = None if result.accuracy == "not enough labels" else float(result.accuracy == "worse")
    return {
        "digits_drift": ("Whether the images have drifted.", float(result.drift == "drift") if has_verdict else None),
        "digits_drift_severity": (
            "0 none, 1 slight, 2 strong.",
            SEVERITIES.index(result.severity) if has_verdict else None,
        ),
        "digits_drifted_share": ("Share of the columns that drifted.", result.drifted_share if has_verdict else None),
        "digits_accuracy": ("Accuracy on the newest audit labels.", result.measured),
        "digits_accuracy_low": ("Lower end of its 95 % interval.", result.low),
        "digits_accuracy_high": ("Upper end of its 95 % interval.", result.high),
        "digits_accuracy_expected": ("Accuracy that is expected at least.", result.least),
        "digits_accuracy_labels": ("Labels that the accuracy is measured on.", result.labels),
        "digits_accuracy_worse": ("Whether the accuracy is worse than expected.", is_worse),
    }


def _seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()
