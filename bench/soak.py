"""The service under mixed requests for a long time: its memory, open files, threads and latency must not grow.

    python -m bench.soak --minutes 60

Images as JSON, pictures, bulk requests, feedback and bad input, from four clients at a steady rate. Prints a line a minute and at the end
how each figure moved; ends with 1 when one drifted or a request failed that should not have. A figure drifts when its median over the
last fifth of the time is above that over the second fifth (the first is for warming up) by more than `Limits` allow.
"""

import argparse
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import numpy as np
import psutil

from bench import harness
from bench.faults import workers
from digits.images import Images
from models.recipes import COMPACT

CLIENTS = 4
# How often the figures are read, evenly over the whole time.
SAMPLES = 100


@dataclass(frozen=True)
class Limits:
    """How much a median may grow: an absolute amount plus a fraction of the earlier median."""

    amount: float
    fraction: float


LIMITS = {
    "memory (MB)": Limits(12, 0.05),
    "open files": Limits(3, 0.05),
    "threads": Limits(2, 0.05),
    # A busy machine changes it more than a minute of leaking.
    "latency (ms)": Limits(3, 0.5),
}


@dataclass(frozen=True)
class Drift:
    """Medians of one figure early and late."""

    name: str
    before: float
    after: float

    @property
    def is_flat(self) -> bool:
        limits = LIMITS[self.name]
        return self.after - self.before <= limits.amount + limits.fraction * self.before

    def __str__(self) -> str:
        return f"{self.name:13} {self.before:8.1f} -> {self.after:8.1f}{'' if self.is_flat else '   GROWS'}"


@dataclass
class Mixed:
    """Clients that send all kinds of requests and record every unexpected answer."""

    url: str
    images: Images
    # Requests per second of all clients together.
    rate: float
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    # Of the JSON requests since the figures were last read.
    latencies_ms: list[float] = field(default_factory=list)

    def run(self, seconds: float, watch: Callable[[float], None]) -> None:
        """Send requests for so long, and call `watch` at even steps with the median latency of each step."""
        ended = threading.Event()
        threads = [threading.Thread(target=self._send, args=(number, ended)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(SAMPLES):
                time.sleep(seconds / SAMPLES)
                latencies, self.latencies_ms = self.latencies_ms, []
                watch(statistics.median(latencies) if latencies else float("nan"))
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _send(self, number: int, ended: threading.Event) -> None:
        random = np.random.default_rng(number)
        kinds = (self._json, self._json, self._json, self._file, self._bulk, self._feedback, self._bad)
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not ended.wait(CLIENTS / self.rate):
                kind = kinds[int(random.integers(len(kinds)))]
                image = self.images[int(random.integers(len(self.images)))]
                try:
                    status, expected = kind(client, image, random)
                except httpx.HTTPError as error:
                    status, expected = repr(error), 200
                self.answered[kind.__name__.strip("_")] += 1
                if status != expected:
                    self.wrong.append(f"{kind.__name__}: {status} instead of {expected}")

    def _json(self, client: httpx.Client, image: Images, random: np.random.Generator) -> tuple[int | str, int]:
        started = time.perf_counter()
        status = client.post("/classify", json={"images": image.tolist()}).status_code
        self.latencies_ms.append(1000 * (time.perf_counter() - started))
        return status, 200

    def _file(self, client: httpx.Client, image: Images, random: np.random.Generator) -> tuple[int | str, int]:
        return client.post("/classify_file", files={"file": harness.png(image)}).status_code, 200

    def _bulk(self, client: httpx.Client, image: Images, random: np.random.Generator) -> tuple[int | str, int]:
        body = np.repeat(image[None], int(random.integers(1, 50)), 0).tobytes()
        headers = {"Content-Type": "application/octet-stream"}
        return client.post("/classify_bulk", content=body, headers=headers).status_code, 200

    def _feedback(self, client: httpx.Client, image: Images, random: np.random.Generator) -> tuple[int | str, int]:
        id = client.post("/classify", json={"images": image.tolist()}).json()["id"]
        return client.post("/feedback", json={"id": id, "digit": int(random.integers(10))}).status_code, 200

    def _bad(self, client: httpx.Client, image: Images, random: np.random.Generator) -> tuple[int | str, int]:
        if random.random() < 0.5:
            return client.post("/classify", json={"images": [[300] * 28] * 28}).status_code, 422
        return client.post("/classify_file", files={"file": harness.png(image)[:100]}).status_code, 422


def drifts(figures: dict[str, list[float]]) -> list[Drift]:
    """The medians of the second and of the last fifth of each figure."""
    found = []
    for name, values in figures.items():
        fifth = max(1, len(values) // 5)
        found.append(Drift(name, statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])))
    return found


def watch(service: psutil.Process, mixed: Mixed, seconds: float) -> list[Drift]:
    """Load the service for so long and print a line a minute; returns how the figures of its workers moved."""
    figures: dict[str, list[float]] = {name: [] for name in LIMITS}
    started = printed = time.monotonic()

    def record(latency_ms: float) -> None:
        nonlocal printed
        found = workers(service)
        figures["memory (MB)"].append(sum(worker.memory_info().rss for worker in found) / 1e6)
        figures["open files"].append(sum(worker.num_fds() for worker in found))
        figures["threads"].append(sum(worker.num_threads() for worker in found))
        figures["latency (ms)"].append(latency_ms)
        if time.monotonic() - printed >= 60:
            printed = time.monotonic()
            last = ", ".join(f"{name} {values[-1]:.1f}" for name, values in figures.items())
            print(f"{(printed - started) / 60:4.0f} min  {mixed.answered.total():8,} requests  {last}", flush=True)

    mixed.run(seconds, record)
    return drifts(figures)


def main() -> None:
    """Start a service with a champion, load it and exit with 1 when a figure grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=200, help="requests per second")
    arguments = parser.parse_args()
    dataset = harness.data()
    with harness.home() as settings, harness.mlflow(settings):
        harness.register(settings, COMPACT.model_copy(update={"epochs": 2}), dataset)
        with harness.service(settings) as service:
            mixed = Mixed(settings.service_url, dataset.test.images[:1000], arguments.rate)
            found = watch(service, mixed, 60 * arguments.minutes)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in mixed.answered.items())
    print(
        f"{arguments.minutes:g} minutes, {mixed.answered.total():,} requests: {counts}; {len(mixed.wrong)} wrong {mixed.wrong[:3]}"
    )
    print(*found, sep="\n")
    raise SystemExit(0 if not mixed.wrong and all(drift.is_flat for drift in found) else 1)


if __name__ == "__main__":
    main()
