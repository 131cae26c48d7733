"""Counts the requests of this worker by minute, and writes them to the database: monitoring assesses the volume of traffic."""

import threading
import time
from datetime import UTC, datetime

from sqlalchemy import Engine

from digits.storage import database, request_counts
from digits.storage.request_counts import Total

# Seven routes with fifteen statuses are 105 counts a minute at most: so an hour and a half of them, and in practice days.
MAX_COUNTS = 10_000

# The requests, images and uncertain images of a minute by route and status.
Minute = dict[tuple[str, int], tuple[int, int, int]]


class RequestCounter:
    """The counts that are not in the database yet, at most `limit`; then the oldest minute is forgotten.

    They are in memory only: a killed worker loses what it counted since it last reached the database.
    """

    def __init__(self, limit: int = MAX_COUNTS) -> None:
        self._limit = limit
        self._minutes: dict[int, Minute] = {}
        self._lock = threading.Lock()

    def count(self, route: str, status: int, requests: int = 0, images: int = 0, uncertain: int = 0) -> None:
        """Count requests, or images that were classified; `route` must come from a fixed set."""
        self._add(int(time.time() // 60), {(route, status): (requests, images, uncertain)})

    def store(self, engine: Engine) -> None:
        """Add what was counted to the database, minute by minute; what it does not accept is kept."""
        with self._lock:
            minutes = sorted(self._minutes)
        for minute in minutes:
            with self._lock:
                counts = self._minutes.pop(minute, {})
            totals = [Total(route, status, *numbers) for (route, status), numbers in counts.items()]
            try:
                request_counts.append(engine, datetime.fromtimestamp(60 * minute, UTC), totals)
            except database.ERRORS:
                self._add(minute, counts)
                raise

    def _add(self, minute: int, counts: Minute) -> None:
        with self._lock:
            known = self._minutes.get(minute)
            if known is None:
                self._forget_oldest()
                known = self._minutes.setdefault(minute, {})
            for key, (requests, images, uncertain) in counts.items():
                before = known.get(key, (0, 0, 0))
                known[key] = (before[0] + requests, before[1] + images, before[2] + uncertain)

    def _forget_oldest(self) -> None:
        while sum(map(len, self._minutes.values())) > self._limit:
            del self._minutes[min(self._minutes)]
