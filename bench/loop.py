"""The whole loop, unattended: drift is noticed and named, labels come, a better version is trained, promoted and served.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.loop
    python -m bench.loop --data bundled --recipe sigmoid --requests 350 --audit 1    # scikit-learn's digits, shorter

A platform of its own is started on free ports. All digits are shuffled and divided in four: those the platform trains and tests
on, those that people write, and those that nobody ever sends, on which the endpoint is measured before and after. Then
another population writes, with thick slanted strokes, a little to the right. The script plays the people and the hour hand,
and labels the audit sample; retraining, gate and promotion are the platform's own, started by its drift event.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from digits.data import datasets, perturbations, sources
from digits.images import Split
from digits.settings import load_settings
from digits.storage import database, feedback, ledger
from digits.storage.predictions import AUDITOR

ROOT = Path(__file__).parent.parent
PORTS = ("SERVICE", "MLFLOW", "PREFECT", "REPORTS")
RECOVERED = 0.75  # of the loss, at least
TEST_LOSS = 0.002  # at most
AT_ONCE = 50  # images per request


class Failed(AssertionError):
    """The loop did not close."""


@dataclass(frozen=True)
class People:
    """Digits for each purpose; no image is in two of them."""

    train: Split
    test: Split
    traffic: Split
    held_out: Split


def divide(data: str, requests: int) -> People:
    """All digits of a source, shuffled and divided."""
    settings = load_settings()
    dataset = sources.read(data, mnist=settings.mnist, cache=settings.downloads)
    pool = datasets.join(dataset.train, dataset.validation, dataset.test)
    order = np.random.default_rng(0).permutation(len(pool))
    tenth = len(pool) // 10
    traffic = min(2 * requests, 2 * tenth)
    ends = np.cumsum([tenth + tenth // 2, traffic, tenth])
    test, sent, held_out, train = (Split(pool.images[part], pool.labels[part]) for part in np.split(order, ends))
    return People(train, test, sent, held_out)


def changed(split: Split) -> Split:
    """As another population writes: thick slanted strokes, to the right of the middle."""
    return Split(
        perturbations.shift(perturbations.slant(perturbations.thicken(split.images, 1.0), 20), 2.5), split.labels
    )


@dataclass
class Platform:
    """A running `digits up`, its command line and its endpoint."""

    home: Path
    environment: dict[str, str]
    client: httpx.Client
    started: float

    def say(self, message: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {message}", flush=True)

    def run(self, *message: str) -> str:
        """What a command printed."""
        command = [sys.executable, "-m", "ops", *message]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"digits {' '.join(message)}: {done.stderr}")
        return done.stdout + done.stderr

    def send(self, split: Split, count: int, seed: int) -> None:
        """So many of the digits, at random without replacement as long as they last."""
        random = np.random.default_rng(seed)
        chosen = random.choice(len(split), count, replace=count > len(split))
        for start in range(0, count, AT_ONCE):
            images = split.images[chosen[start : start + AT_ONCE]]
            self.client.post("/classify", json={"images": images.tolist()}).raise_for_status()
        time.sleep(2)  # the log writes in batches

    def accuracy(self, split: Split) -> float:
        """Of the endpoint, on images that are not logged."""
        body = split.images.tobytes()
        answer = self.client.post("/classify_bulk", content=body, headers={"Content-Type": "application/octet-stream"})
        answer.raise_for_status()
        return float((np.array(answer.json()["digits"]) == split.labels).mean())

    def version(self) -> str:
        return str(self.client.get("/about").json()["model_version"])

    def wait_for_version(self, wanted: Callable[[str], bool]) -> bool:
        """Whether the endpoint follows within half a minute."""
        deadline = time.monotonic() + 30
        while not (there := wanted(self.version())) and time.monotonic() < deadline:
            time.sleep(0.2)
        return there

    def last_words(self) -> str:
        """What the gate said last, from Prefect's artifacts."""
        wanted = {"artifacts": {"key": {"any_": ["gate"]}}, "sort": "CREATED_DESC", "limit": 1}
        prefect = f"http://127.0.0.1:{self.environment['DIGITS_PREFECT_PORT']}/api"
        found = httpx.post(f"{prefect}/artifacts/filter", json=wanted, timeout=30).json()
        return str(found[0]["data"]) if found else "nothing"

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds:.0f} s in vain for {what}")
            time.sleep(1)

    def retrainings(self) -> list[dict[str, Any]]:
        """The flow runs that events started, as Prefect has them."""
        wanted = {"flows": {"name": {"any_": ["retrain"]}}}
        prefect = f"http://127.0.0.1:{self.environment['DIGITS_PREFECT_PORT']}/api"
        runs = httpx.post(f"{prefect}/flow_runs/filter", json=wanted, timeout=30).json()
        return [run for run in runs if run["parameters"].get("cooldown")]

    def wait_for_retraining(self, number: int) -> None:
        """Until so many retrainings that events started have ended."""
        self.wait(f"retraining {number}", lambda: len(self.retrainings()) >= number)
        self.wait("its end", lambda: all(run["end_time"] for run in self.retrainings()))
        failed = [run["state"]["message"] for run in self.retrainings() if run["state_type"] != "COMPLETED"]
        if failed:
            raise Failed(f"a retraining failed: {failed}")

    def monitor(self, since: datetime) -> tuple[str, dict[str, Any]]:
        """What `digits monitor` says and writes of the time since then."""
        printed = self.run("monitor", "--since", since.isoformat())
        report = re.findall(r"^report: (.*)$", printed, re.MULTILINE)[-1]
        return printed, json.loads(Path(report).with_name("verdict.json").read_text())

    def label(self, people: Split, since: datetime) -> int:
        """Label the audit sample as an auditor does who knows every digit; how many."""
        known = {image.tobytes(): int(digit) for image, digit in zip(people.images, people.labels, strict=True)}
        waiting = feedback.unlabelled_audit(database.connect(f"sqlite:///{self.home}/digits.db"), since)
        for id, image in waiting:
            body = {"id": id, "digit": known[image.tobytes()], "source": AUDITOR}
            self.client.post("/feedback", json=body).raise_for_status()
        return len(waiting)


@contextmanager
def platform(home: Path, recipe: str, data: Path, audit_sample_rate: float) -> Iterator[Platform]:
    """A platform on free ports, up and with a first champion trained on the data."""
    ports = {f"DIGITS_{name}_PORT": str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    outside = ("MLFLOW_", "PREFECT_", "DIGITS_", "BENTOML_")
    own = {
        "DIGITS_HOME": str(home),
        "DIGITS_RECIPE": recipe,
        "DIGITS_AUDIT_SAMPLE_RATE": str(audit_sample_rate),
        "DIGITS_BULK_LOG_SAMPLE_RATE": "0",
        "DIGITS_RETRAIN_COOLDOWN_HOURS": "0",
        "DIGITS_RETRAIN_LABELS": "1000000",  # drift alone starts a retraining here
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)} | own | ports
    client = httpx.Client(base_url=f"http://127.0.0.1:{ports['DIGITS_SERVICE_PORT']}", timeout=60)
    found = Platform(home, environment, client, time.monotonic())
    found.run("ingest", "--data", str(data))
    log = home / "up.log"
    with log.open("w") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "ops", "up"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        found.wait("digits up", lambda: up.poll() is not None or "Ctrl-C stops" in log.read_text())
        if up.poll() is not None:
            raise Failed(log.read_text())
        yield found
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGINT)
            up.wait(120)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on; all are held until all are known, so that no two are the same."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def write_npz(path: Path, people: People, seed: int | None = None) -> Path:
    """Train and test as a source; with a seed, the labels of train are shuffled."""
    labels = people.train.labels if seed is None else np.random.default_rng(seed).permutation(people.train.labels)
    train, test = people.train, people.test
    np.savez(path, x_train=train.images, y_train=labels, x_test=test.images, y_test=test.labels)
    return path


def check(truth: bool, message: str) -> None:
    if not truth:
        raise Failed(message)


def close(there: Platform, people: People, requests: int) -> None:
    """The loop, step by step; raises Failed at the first that goes wrong."""
    written = changed(people.held_out)
    first = there.version()
    test_before, plain = there.accuracy(people.test), there.accuracy(people.held_out)
    there.say(f"digits v{first} answers: {test_before:.2%} on test images, {plain:.2%} on held-out digits")

    since = datetime.now(UTC)
    there.send(people.traffic, requests, seed=1)
    printed, verdict = there.monitor(since)
    check(verdict["drift"]["verdict"] == "no drift", f"an alarm on plain traffic: {printed}")
    there.say(f"{verdict['count']} plain answers: {verdict['drift']['message']}")

    since = datetime.now(UTC)
    population = changed(people.traffic)
    before = there.accuracy(written)
    there.send(population, requests, seed=2)
    printed, verdict = there.monitor(since)
    explanations = [one["perturbation"] for one in verdict["drift"]["explanations"]]
    check(verdict["drift"]["verdict"] == "drift", f"no alarm on changed traffic: {printed}")
    check(
        bool({"thicken", "slant", "shift", "rotate"} & set(explanations)),
        f"the drift is not explained: {verdict['message']}",
    )
    there.say(f"{verdict['count']} changed answers: {verdict['message']}")
    there.say(f"accuracy on held-out changed digits: {before:.2%}")
    there.wait_for_retraining(1)
    check(there.version() == first, "a retraining without new labels changed the champion")
    there.say("the drift event started a retraining; without labels there was nothing new to learn")

    labelled = there.label(population, since)
    printed, verdict = there.monitor(since)
    check(verdict["accuracy"]["verdict"] == "worse", f"the loss of accuracy is not noticed: {printed}")
    there.say(f"{labelled} audited: {verdict['accuracy']['message']}")
    there.wait_for_retraining(2)
    check(there.wait_for_version(lambda version: version != first), f"not promoted: {there.last_words()}")
    second = there.version()
    after, test_after = there.accuracy(written), there.accuracy(people.test)
    recovered = (after - before) / (plain - before)
    why = ledger.entries(database.connect(f"sqlite:///{there.home}/digits.db"))[-1].why
    there.say(f"digits v{second} was promoted: {why}")
    there.say(f"on held-out changed digits {before:.2%} → {after:.2%}, {recovered:.0%} of the loss recovered")
    there.say(f"on test images {test_before:.2%} → {test_after:.2%}")
    check(recovered >= RECOVERED, f"only {recovered:.0%} of the loss came back")
    least = max(TEST_LOSS, 1.5 / len(people.test))  # of a few hundred images, one is more than that
    check(test_before - test_after <= least, f"test accuracy fell from {test_before:.4f} to {test_after:.4f}")

    printed = there.run("retrain", "--data", str(write_npz(there.home / "sabotaged.npz", people, seed=3)))
    check(": hold: " in printed, f"a sabotaged candidate was not held: {printed}")
    check(there.version() == second, "a sabotaged candidate answers")
    there.say(f"sabotaged: {re.findall(r'digits v.*: hold: .*', printed)[-1]}")

    there.run("rollback")
    check(there.wait_for_version(lambda version: version == first), "the endpoint does not follow the rollback")
    check(there.accuracy(written) == before, "the version rolled back to answers otherwise than before")
    there.say(f"rolled back: digits v{first} answers again")


def main() -> None:
    """Print a line per step; exit code 1 where the loop does not close."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--recipe", default="compact")
    parser.add_argument("--requests", type=int, default=3000, help="answers in each window")
    parser.add_argument("--audit", type=float, default=0.8, help="share of the answers drawn for labelling")
    arguments = parser.parse_args()
    people = divide(arguments.data, arguments.requests)
    with tempfile.TemporaryDirectory(prefix="digits-loop-") as folder:
        home = Path(folder)
        data = write_npz(home / "digits.npz", people)
        try:
            with platform(home, arguments.recipe, data, arguments.audit) as there:
                close(there, people, arguments.requests)
        except Failed as failure:
            sys.exit(f"the loop does not close: {failure}")


if __name__ == "__main__":
    main()
