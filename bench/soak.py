"""The service under mixed requests for a long time: its memory, open files, threads and latency must not grow.

    python -m bench.soak --minutes 60

Images as JSON, pictures, bulk requests, feedback and bad input, at a steady rate: half of what the same clients reach without a pause,
measured first. Prints a line a minute and at the end
how each figure moved; ends with 1 when one drifted or a request failed that should not have. A figure drifts when its median over the
last fifth of the time is above that over the second fifth (the first is for warming up) by more than `Limits` allow.
"""

import argparse
import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

import httpx
import numpy as np
import orjson
import psutil

from bench import harness
from bench.faults import workers
from digits.images import Images
from models.recipes import COMPACT

# So many that the load is not set by feedback, which waits until the answer it is for is in the database.
CLIENTS = 32
TOO_BRIGHT = orjson.dumps({"images": [[300] * 28] * 28})
# The clients send without a pause for so long to measure the rate of full load.
FULL_LOAD_SECONDS = 30
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

    def __post_init__(self) -> None:
        # made beforehand and sent by http.client, so that the clients leave the processor to the service
        self.as_json = [orjson.dumps({"images": image.tolist()}) for image in self.images]
        self.as_png = [harness.png(image) for image in self.images]

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
        address = httpx.URL(self.url)
        kinds = (self._json, self._json, self._json, self._file, self._bulk, self._feedback, self._bad)
        with closing(HTTPConnection(address.host, address.port, timeout=60)) as connection:
            due = time.monotonic()
            while not ended.wait(max(0.0, due - time.monotonic())):
                due = max(due + CLIENTS / self.rate, time.monotonic())
                kind = kinds[int(random.integers(len(kinds)))]
                try:
                    status, expected = kind(connection, int(random.integers(len(self.images))), random)
                except (OSError, HTTPException) as error:
                    connection.close()
                    status, expected = repr(error), 200
                self.answered[kind.__name__.strip("_")] += 1
                if status != expected:
                    self.wrong.append(f"{kind.__name__}: {status} instead of {expected}")

    def _json(self, connection: HTTPConnection, image: int, random: np.random.Generator) -> tuple[int | str, int]:
        started = time.perf_counter()
        status, _ = post(connection, "/classify", self.as_json[image])
        self.latencies_ms.append(1000 * (time.perf_counter() - started))
        return status, 200

    def _file(self, connection: HTTPConnection, image: int, random: np.random.Generator) -> tuple[int | str, int]:
        return post(connection, "/classify_file", self.as_png[image], "image/png")[0], 200

    def _bulk(self, connection: HTTPConnection, image: int, random: np.random.Generator) -> tuple[int | str, int]:
        body = np.repeat(self.images[image, None], int(random.integers(1, 50)), 0).tobytes()
        return post(connection, "/classify_bulk", body, "application/octet-stream")[0], 200

    def _feedback(self, connection: HTTPConnection, image: int, random: np.random.Generator) -> tuple[int | str, int]:
        _, text = post(connection, "/classify", self.as_json[image])
        feedback = {"id": orjson.loads(text)["id"], "digit": int(random.integers(10))}
        return post(connection, "/feedback", orjson.dumps(feedback))[0], 200

    def _bad(self, connection: HTTPConnection, image: int, random: np.random.Generator) -> tuple[int | str, int]:
        if random.random() < 0.5:
            return post(connection, "/classify", TOO_BRIGHT)[0], 422
        return post(connection, "/classify_file", self.as_png[image][:100], "image/png")[0], 422


def post(
    connection: HTTPConnection, path: str, body: bytes, content_type: str = "application/json"
) -> tuple[int, bytes]:
    """The status and the body of the response."""
    connection.request("POST", path, body, {"Content-Type": content_type})
    response = connection.getresponse()
    return response.status, response.read()


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


def full_load(url: str, images: Images) -> float:
    """The requests per second of clients that never pause."""
    mixed = Mixed(url, images, rate=math.inf)
    started = time.monotonic()
    mixed.run(FULL_LOAD_SECONDS, lambda latency_ms: None)
    return mixed.answered.total() / (time.monotonic() - started)


def main() -> None:
    """Start a service with a champion, load it and exit with 1 when a figure grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--load", type=float, default=0.5, help="fraction of full load")
    arguments = parser.parse_args()
    dataset = harness.data()
    with harness.home() as settings, harness.mlflow(settings):
        harness.register(settings, COMPACT.model_copy(update={"epochs": 2}), dataset)
        with harness.service(settings) as service:
            full = full_load(settings.service_url, dataset.test.images[:1000])
            print(f"full load: {full:.0f} requests/s", flush=True)
            mixed = Mixed(settings.service_url, dataset.test.images[:1000], arguments.load * full)
            found = watch(service, mixed, 60 * arguments.minutes)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in mixed.answered.items())
    print(
        f"{arguments.minutes:g} minutes, {mixed.answered.total():,} requests: {counts}; {len(mixed.wrong)} wrong {mixed.wrong[:3]}"
    )
    print(*found, sep="\n")
    raise SystemExit(0 if not mixed.wrong and all(drift.is_flat for drift in found) else 1)


if __name__ == "__main__":
    main()
