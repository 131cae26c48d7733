"""What `/metrics` tells Prometheus: requests, their latency, the answers given, the version, the state of the log.

BentoML's workers are processes; prometheus_client shares their figures through files in the folder that BentoML names in
PROMETHEUS_MULTIPROC_DIR (https://prometheus.github.io/client_python/multiprocess/).
"""

import logging
import os
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digits.images import Labels

log = logging.getLogger("digits.service")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FILES = (
    "counter",
    "histogram",
    "gauge_livemin",
    "gauge_livemax",
    "gauge_livesum",
)  # of each process, by kind of figure
FILE_BYTES = 1 << 16  # which prometheus_client begins with, enough for all figures here


def _reserve() -> None:
    """Take the disk space of this worker's files now: they are mapped into memory, and writing to a hole on a full disk kills.

    Where there is none, the figures of this worker are not shared.
    """
    from bentoml._internal.configuration.containers import BentoMLContainer

    if VARIABLE not in os.environ:
        return
    folder = Path(BentoMLContainer.prometheus_multiproc_dir.get())
    try:
        for kind in FILES:
            with suppress(FileExistsError), (folder / f"{kind}_{os.getpid()}.db").open("xb") as file:
                file.write(bytes(FILE_BYTES))
    except OSError as error:
        log.warning("%s takes no figures to share (%s); /metrics tells of single workers", folder, error.strerror)
        del os.environ[VARIABLE]


class Metrics:
    """The figures of this worker; the children of each metric are kept, because looking them up costs more than counting."""

    def __init__(self) -> None:
        _reserve()
        # decides at its import whether it shares figures, and BentoML names the folder only in its workers
        import prometheus_client as prometheus

        self._prometheus = prometheus
        self._requests = prometheus.Counter("digits_requests", "Requests answered.", ["route", "status"])
        self._seconds = prometheus.Histogram("digits_request_seconds", "Time to answer.", ["route"], buckets=SECONDS)
        self._answers = prometheus.Counter("digits_answers", "Images answered.", ["version", "digit"])
        self._uncertain = prometheus.Counter("digits_uncertain_answers", "Images answered as unsure.", ["version"])
        gauge = prometheus.Gauge
        self._version = gauge(
            "digits_champion_version", "Version that answers, 0 before the first.", multiprocess_mode="livemin"
        )
        self._waiting = gauge("digits_log_waiting", "Answers that wait to be logged.", multiprocess_mode="livesum")
        self._spooled = gauge(
            "digits_log_spooled_batches", "Batches on disk until the database is back.", multiprocess_mode="livemax"
        )
        self._lost = gauge(
            "digits_log_lost", "Answers that neither database nor disk would take.", multiprocess_mode="livesum"
        )
        self._lock = threading.Lock()
        self._pending: defaultdict[prometheus.Counter, int] = defaultdict(int)
        self._counted: dict[tuple[str, int], prometheus.Counter] = {}
        self._timed: dict[str, prometheus.Histogram] = {}
        self._answered: dict[tuple[str, int], prometheus.Counter] = {}

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """One request; `route` must come from a fixed set."""
        counter = self._counted.get((route, status))
        if counter is None:
            counter = self._counted[route, status] = self._requests.labels(route, str(status))
        with self._lock:
            self._pending[counter] += 1
        timer = self._timed.get(route)
        if timer is None:
            timer = self._timed[route] = self._seconds.labels(route)
        timer.observe(seconds)

    def count_answers(self, version: str, digits: Labels, uncertain: NDArray[np.bool_]) -> None:
        """Answers (n,)."""
        guesses = int(np.count_nonzero(uncertain))
        if guesses:
            self._uncertain.labels(version).inc(guesses)
        if len(digits) == 1:
            self._answer(version, int(digits[0]), 1)
            return
        for digit, count in enumerate(np.bincount(digits).tolist()):
            if count:
                self._answer(version, digit, count)

    def _answer(self, version: str, digit: int, count: int) -> None:
        counter = self._answered.get((version, digit))
        if counter is None:
            counter = self._answered[version, digit] = self._answers.labels(version, str(digit))
        with self._lock:
            self._pending[counter] += count

    def flush(self) -> None:
        """Share what was counted, at least once a second: counting in the shared files took a twelfth of a request's time."""
        with self._lock:
            counts, self._pending = self._pending, defaultdict(int)
        for counter, count in counts.items():
            counter.inc(count)

    def set_state(self, *, version: str, waiting: int, spooled: int, lost: int) -> None:
        """What holds now."""
        self.flush()
        self._version.set(int(version) if version.isdigit() else 0)
        self._waiting.set(waiting)
        self._spooled.set(spooled)
        self._lost.set(lost)

    def render(self) -> tuple[bytes, str]:
        """The text for Prometheus over all workers, and its content type."""
        from prometheus_client import multiprocess

        self.flush()
        registry = self._prometheus.REGISTRY
        if VARIABLE in os.environ:
            registry = self._prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # shipped without types
        return self._prometheus.generate_latest(registry), self._prometheus.CONTENT_TYPE_LATEST
