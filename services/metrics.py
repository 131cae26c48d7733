"""The metrics behind `/metrics`: requests, latency, predictions, the served version, the prediction log and the platform.

Workers are processes; prometheus_client merges their metrics through files in the folder that PROMETHEUS_MULTIPROC_DIR names
(https://prometheus.github.io/client_python/multiprocess/). `python -m services` and `bentoml serve` set it.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digits.files import is_alive
from digits.images import Labels
from services.platform_state import PlatformCollector, PlatformState

log = logging.getLogger("digits.service")

BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# prometheus_client writes one file for each process and kind of metric, of this size, which is enough for all metrics here
FILE_KINDS = ("counter", "histogram", "gauge_livemin", "gauge_livemax", "gauge_livesum")
FILE_BYTES = 1 << 16


def _reserve_files(folder: Path) -> None:
    """Allocate this worker's files now: they are memory-mapped, and a write to a hole on a full disk kills the process.

    Without room for them, this worker does not share its metrics.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in FILE_KINDS:
            with suppress(FileExistsError), (folder / f"{kind}_{os.getpid()}.db").open("xb") as file:
                file.write(bytes(FILE_BYTES))
    except OSError as error:
        log.warning("cannot write to %s (%s); /metrics reports single workers", folder, error.strerror)
        del os.environ[FOLDER_VARIABLE]


def _remove_dead_gauges(folder: Path) -> None:
    """Remove the gauges of killed workers; their counters stay."""
    from prometheus_client import multiprocess

    for path in folder.glob("gauge_livesum_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not is_alive(pid):
            multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # shipped without types


class Metrics:
    """The metrics of this worker; those of the platform's state are the same in all workers."""

    def __init__(self, platform_state: Callable[[], PlatformState] = PlatformState) -> None:
        if folder := os.environ.get(FOLDER_VARIABLE):
            _reserve_files(Path(folder))
            _remove_dead_gauges(Path(folder))
        # decides at its import whether metrics are shared
        import prometheus_client as prometheus

        self._prometheus = prometheus
        self._platform = prometheus.CollectorRegistry()
        self._platform.register(PlatformCollector(platform_state))
        # the children are kept, because looking one up takes longer than counting
        requests = prometheus.Counter("digits_requests", "Requests answered.", ["route", "status"])
        self._requests = cache(requests.labels)
        histogram = partial(prometheus.Histogram, buckets=BUCKETS_SECONDS)
        seconds = histogram("digits_request_duration_seconds", "Time to answer.", ["route"])
        self._seconds = cache(seconds.labels)
        self._answers = prometheus.Counter("digits_answers", "Images classified.", ["version", "digit"])
        self._uncertain = prometheus.Counter("digits_uncertain_answers", "Uncertain predictions.", ["version"])
        self._no_digit = prometheus.Counter("digits_no_digit_answers", "Images that show no digit.", ["version"])
        lost = "Predictions answered without an id: the disk refused them, or too many waited."
        self._lost = prometheus.Counter("digits_log_lost", lost)
        # Not an info metric, because prometheus_client cannot remove the label of a replaced version in multiprocess mode.
        gauge = prometheus.Gauge
        self._version = gauge("digits_champion_version", "Served version, 0 at first.", multiprocess_mode="livemin")
        self._waiting = gauge("digits_log_waiting", "Unstored predictions.", multiprocess_mode="livesum")
        self._sealed = gauge("digits_log_sealed_segments", "Unstored log segments.", multiprocess_mode="livemax")
        damaged = "Log segments with damaged records, or with some that cannot be stored."
        self._damaged = gauge("digits_log_damaged_segments", damaged, multiprocess_mode="livemax")

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` must come from a fixed set."""
        self._requests(route, status).inc()
        self._seconds(route).observe(seconds)

    def count_answers(
        self, version: str, digits: Labels, uncertain: NDArray[np.bool_], is_digit: NDArray[np.bool_]
    ) -> None:
        """Count predictions (n,)."""
        if n_uncertain := int(np.count_nonzero(uncertain)):
            self._uncertain.labels(version).inc(n_uncertain)
        # Also 0 of them: a share is known from the first answer on.
        self._no_digit.labels(version).inc(len(digits) - int(np.count_nonzero(is_digit)))
        for digit, count in enumerate(np.bincount(digits).tolist()):
            if count:
                self._answers.labels(version, digit).inc(count)

    def count_lost(self, count: int) -> None:
        """Count predictions that were not logged."""
        self._lost.inc(count)

    def set_gauges(self, champion_version: int, waiting: int, sealed_segments: int, damaged_segments: int) -> None:
        """Set the version that this worker serves, and the state of its prediction log."""
        self._version.set(champion_version)
        self._waiting.set(waiting)
        self._sealed.set(sealed_segments)
        self._damaged.set(damaged_segments)

    def render(self) -> tuple[bytes, str]:
        """The metrics of all workers in the Prometheus text format, and its content type."""
        from prometheus_client import multiprocess

        registry = self._prometheus.REGISTRY
        if FOLDER_VARIABLE in os.environ:
            registry = self._prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # shipped without types
        text = b"".join(map(self._prometheus.generate_latest, (registry, self._platform)))
        return text, self._prometheus.CONTENT_TYPE_LATEST
