"""Ten champion swaps under load: failed requests, latency before and during the swaps, and the version of the last answers.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.swaps

wrk keeps 8 connections busy, and a separate client checks the model version of every answer.
"""

import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import orjson

from bench import harness
from digits.settings import Settings
from models.recipes import COMPACT
from models.registry import RegistryWriter

SWAPS = 10
# Duration of the load before the swaps, and at least of the load during them.
SECONDS = 20
# p99 during the swaps, relative to before.
MAX_P99_RATIO = 2.0


class Client:
    """Sends one request after the other from a thread until it is stopped."""

    def __init__(self, url: str, body: bytes) -> None:
        self.versions: list[str] = []
        self.failed: list[str] = []
        self._url, self._body, self._ended = url, body, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post(self._url, content=self._body, headers={"Content-Type": "application/json"})
                    self.versions.append(answer.raise_for_status().json()["model_version"])
                except (httpx.HTTPError, KeyError) as error:
                    self.failed.append(repr(error))


def main() -> None:
    """Measure and print."""
    dataset = harness.data()
    recipe = COMPACT.model_copy(update={"epochs": 2})
    with harness.home() as settings, harness.mlflow(settings):
        versions = [harness.register(settings, recipe.model_copy(update={"seed": seed}), dataset) for seed in (0, 1)]
        body = orjson.dumps({"images": dataset.test.images[0].tolist()})
        script = harness.script(settings.home, "swaps", body, "application/json")
        url = f"{settings.service_url}/classify"
        with harness.service(settings), ThreadPoolExecutor(1) as pool:
            harness.wrk(url, script, 3)
            before = harness.wrk(url, script, SECONDS)
            client = Client(url, body)
            client.start()
            during = pool.submit(harness.wrk, url, script, SECONDS + 2 * SWAPS)
            seconds = swap(settings, versions)
            load = during.result()
            client.stop()
            last = versions[(SWAPS + 1) % 2]
            print(f"before:    {before}")
            print(
                f"during:    {load}   p99 {load.p99_ms / before.p99_ms:.2f} × the p99 before (at most {MAX_P99_RATIO:g})"
            )
            print(
                f"{SWAPS} swaps, each seen after {statistics.median(seconds):.1f} s (median; the service polls the registry every {settings.registry_poll_seconds:g} s)"
            )
            print(f"answers checked, by version: {dict(Counter(client.versions))}, {len(client.failed)} failed")
            print(f"the last 100 are from v{last}: {set(client.versions[-100:]) == {last}}")


def swap(settings: Settings, versions: list[str]) -> list[float]:
    """Move the alias back and forth, each time until the service reports the new version; returns the seconds of each swap."""
    registry = RegistryWriter(settings.registry_uri)
    seconds = []
    for number in range(SWAPS):
        started = time.perf_counter()
        version = versions[number % 2]
        registry.set_alias("champion", version)
        while httpx.get(f"{settings.service_url}/about", timeout=10).json()["model_version"] != version:
            time.sleep(0.02)
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
