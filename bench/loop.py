"""The whole loop, unattended: drift is detected and explained, labels arrive, a better version is trained, promoted and served.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.loop
    python -m bench.loop --data bundled --recipe sigmoid --requests 350 --audit 1    # scikit-learn's digits, shorter
    python -m bench.loop --approval approved    # DIGITS_PROMOTION=ask, and a person approves in Prefect; or `declined`, in a terminal

The script starts a platform on free ports, in a temporary folder. It shuffles all digits and divides them into training, test,
traffic and held-out digits; accuracy is measured on the held-out ones, which are never sent as traffic. The traffic then changes
to thick, slanted strokes that are shifted to the right. The script sends the traffic, starts the monitoring and labels the audit
sample; the drift event starts the retraining, and the gate promotes.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import Engine

from digits.data import datasets, perturbations, sources
from digits.images import Split
from digits.settings import Settings, load_settings
from digits.storage import database, feedback, ledger
from ops import traffic

ROOT = Path(__file__).parent.parent
PORTS = ("SERVICE", "MLFLOW", "PREFECT", "REPORTS")
# Share of the lost accuracy that the retraining must recover.
MIN_RECOVERED = 0.75
# Accuracy on the test images that it may cost.
MAX_TEST_LOSS = 0.002
IMAGES_PER_REQUEST = 50


class Failed(AssertionError):
    """The loop did not close."""


@dataclass(frozen=True)
class Digits:
    """Digits for each purpose; no image is in two of them."""

    train: Split
    test: Split
    traffic: Split
    held_out: Split


def divide(data: str, requests: int) -> Digits:
    """All digits of a source, shuffled and divided."""
    settings = load_settings()
    dataset = sources.read(data, mnist=settings.mnist, cache=settings.downloads)
    pool = datasets.join(dataset.train, dataset.validation, dataset.test)
    order = np.random.default_rng(0).permutation(len(pool))
    tenth = len(pool) // 10
    traffic = min(2 * requests, 2 * tenth)
    ends = np.cumsum([tenth + tenth // 2, traffic, tenth])
    test, sent, held_out, train = (Split(pool.images[part], pool.labels[part]) for part in np.split(order, ends))
    return Digits(train, test, sent, held_out)


def changed(split: Split) -> Split:
    """Digits in the style of another population: thick, slanted, right of the centre."""
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

    @cached_property
    def settings(self) -> Settings:
        """The platform's, as far as addresses need them."""
        ports = {f"{name.lower()}_port": self.environment[f"DIGITS_{name}_PORT"] for name in PORTS}
        return Settings(_env_file=None, home=self.home, **ports)  # type: ignore[call-arg, arg-type]

    @cached_property
    def engine(self) -> Engine:
        return database.connect(f"sqlite:///{self.home}/digits.db")

    def report(self, message: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {message}", flush=True)

    def run(self, *arguments: str) -> str:
        """The output of a `digits` command."""
        command = [sys.executable, "-m", "ops", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"digits {' '.join(arguments)}: {done.stderr}")
        return done.stdout + done.stderr

    def send(self, split: Split, count: int, seed: int) -> None:
        """Send `count` of the digits, drawn without replacement where there are enough."""
        random, since = np.random.default_rng(seed), datetime.now(UTC)
        chosen = random.choice(len(split), count, replace=count > len(split))
        for start in range(0, count, IMAGES_PER_REQUEST):
            traffic.classify_batch(self.client, split.images[chosen[start : start + IMAGES_PER_REQUEST]])
        traffic.wait_until_logged(self.engine, since, count)

    def accuracy(self, split: Split) -> float:
        """Accuracy of the endpoint on images that are not logged."""
        body = split.images.tobytes()
        answer = self.client.post("/classify_bulk", content=body, headers={"Content-Type": "application/octet-stream"})
        answer.raise_for_status()
        return float((np.array(answer.json()["digits"]) == split.labels).mean())

    def version(self) -> str:
        return str(self.client.get("/about").json()["model_version"])

    def wait_for_version(self, wanted: Callable[[str], bool], seconds: float = 30) -> bool:
        """Whether the endpoint serves such a version within so many seconds."""
        deadline = time.monotonic() + seconds
        while not (follows := wanted(self.version())) and time.monotonic() < deadline:
            time.sleep(0.2)
        return follows

    def gate_message(self) -> str:
        """The latest message of the gate, from Prefect's artifacts."""
        wanted = {"artifacts": {"key": {"any_": ["gate"]}}, "sort": "CREATED_DESC", "limit": 1}
        found = self._prefect("artifacts/filter", wanted)
        return str(found[0]["data"]) if found else "nothing"

    @property
    def prefect_login(self) -> str:
        """`user:password`, as `digits up` generated it."""
        return (self.home / "prefect" / "login").read_text()

    def _prefect(self, route: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """What Prefect's API finds."""
        url = f"http://127.0.0.1:{self.environment['DIGITS_PREFECT_PORT']}/api/{route}"
        response = httpx.post(url, json=wanted, auth=httpx.BasicAuth(*self.prefect_login.split(":")), timeout=30)
        found: list[dict[str, Any]] = response.raise_for_status().json()
        return found

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 600) -> None:
        """Raises Failed when the condition does not hold within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # On a busy machine a server may answer a poll too late; the next poll asks again.
            with suppress(httpx.TransportError):
                if condition():
                    return
            time.sleep(1)
        raise Failed(f"{what} did not happen within {seconds:.0f} s")

    def retrainings(self) -> list[dict[str, Any]]:
        """The retrainings that events started, as Prefect returns them."""
        wanted = {"flows": {"name": {"any_": ["retrain"]}}}
        runs = self._prefect("flow_runs/filter", wanted)
        return [run for run in runs if run["parameters"].get("cooldown")]

    def wait_for_retraining(self, number: int) -> None:
        """Wait until so many retrainings that events started have ended."""
        self.wait(f"retraining {number}", lambda: len(self.retrainings()) >= number)
        self.wait("its end", lambda: all(run["end_time"] for run in self.retrainings()))
        failed = [run["state"]["message"] for run in self.retrainings() if run["state_type"] != "COMPLETED"]
        if failed:
            raise Failed(f"a retraining failed: {failed}")

    def waiting_runs(self) -> list[dict[str, Any]]:
        """The runs that ask a person for approval and are suspended."""
        wanted = {"flows": {"name": {"any_": ["approve"]}}, "flow_runs": {"state": {"name": {"any_": ["Suspended"]}}}}
        return self._prefect("flow_runs/filter", wanted)

    def answer(self, run: dict[str, Any], **fields: str) -> None:
        """Resume a run that asks, as its form in the Prefect UI does."""
        answered: Any = self._prefect(f"flow_runs/{run['id']}/resume", {"run_input": fields})
        check(answered["status"] == "ACCEPT", f"Prefect does not accept the answer: {answered}")
        # It ends after the version answers: what is normal for it is recorded last.
        ended = {"flow_runs": {"id": {"any_": [run["id"]]}, "state": {"type": {"any_": ["COMPLETED"]}}}}
        self.wait("the end of the run that asked", lambda: self._prefect("flow_runs/filter", ended))

    def decisions(self) -> list[ledger.Entry]:
        """Promotions, rollbacks and what was declined, oldest first."""
        entries = ledger.entries(database.connect(f"sqlite:///{self.home}/digits.db"))
        return [entry for entry in entries if entry.replaces_champion or entry.action == "decline"]

    def monitor(self, since: datetime) -> tuple[str, dict[str, Any]]:
        """Output of `digits monitor` for the time since then, and its verdict.json."""
        printed = self.run("monitor", "--since", since.isoformat())
        report = re.findall(r"^report: (.*)$", printed, re.MULTILINE)[-1]
        return printed, json.loads(Path(report).with_name("verdict.json").read_text())

    def label(self, digits: Split, since: datetime) -> int:
        """Label the audit sample correctly; returns how many predictions were labelled."""
        known = {image.tobytes(): int(digit) for image, digit in zip(digits.images, digits.labels, strict=True)}
        waiting = feedback.unlabelled_audit(self.engine, since)
        traffic.give_labels(self.client, {id: known[image.tobytes()] for id, image in waiting})
        return len(waiting)


@contextmanager
def running_platform(
    home: Path,
    recipe: str,
    data: str | Path,
    audit_sample_rate: float,
    promotion: str,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Platform]:
    """A platform on free ports with these environment variables, up and with a first champion trained on the data."""
    ports = {f"DIGITS_{name}_PORT": str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    outside = ("MLFLOW_", "PREFECT_", "DIGITS_", "BENTOML_")
    own = {
        "DIGITS_HOME": str(home),
        "DIGITS_FIRST_RECIPE": recipe,
        "DIGITS_RECIPE": recipe,
        "DIGITS_PROMOTION": promotion,
        "DIGITS_AUDIT_SAMPLE_RATE": str(audit_sample_rate),
        "DIGITS_BULK_LOG_SAMPLE_RATE": "0",
        "DIGITS_RETRAIN_COOLDOWN_HOURS": "0",
        # Only drift starts a retraining here.
        "DIGITS_RETRAIN_LABELS": "1000000",
        **(variables or {}),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)} | own | ports
    client = httpx.Client(base_url=f"http://127.0.0.1:{ports['DIGITS_SERVICE_PORT']}", timeout=60)
    platform = Platform(home, environment, client, time.monotonic())
    platform.run("ingest", "--data", str(data))
    log = home / "up.log"
    with log.open("w") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "ops", "up"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        platform.wait("digits up", lambda: up.poll() is not None or "Ctrl-C stops" in log.read_text())
        if up.poll() is not None:
            raise Failed(log.read_text())
        yield platform
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGINT)
            up.wait(120)


def free_ports(count: int) -> list[int]:
    """Different ports that are not in use; all are bound before any is released."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def write_npz(path: Path, digits: Digits, seed: int | None = None) -> Path:
    """Write training and test digits as a data source; with a seed, the training labels are shuffled."""
    labels = digits.train.labels if seed is None else np.random.default_rng(seed).permutation(digits.train.labels)
    train, test = digits.train, digits.test
    np.savez(path, x_train=train.images, y_train=labels, x_test=test.images, y_test=test.labels)
    return path


def check(truth: bool, message: str) -> None:
    if not truth:
        raise Failed(message)


def check_that_the_alarm_ends(platform: Platform, population: Split, requests: int) -> None:
    """Two windows after the promotion raise no alarm, although their images differ from those of training."""
    for seed in (3, 4):
        since = datetime.now(UTC)
        platform.send(population, requests, seed=seed)
        printed, verdict = platform.monitor(since)
        check(verdict["drift"]["verdict"] == "no drift", f"the alarm does not end with the promotion: {printed}")
        unlike = verdict["training_drift"]["verdict"] == "drift"
        check(unlike, f"the difference from training is not reported: {printed}")
    platform.report(f"{verdict['count']} changed predictions: {verdict['message']}")


def decide(platform: Platform, approval: str) -> bool:
    """Answer the run that asks for approval: approve in Prefect, or decline in a terminal. Returns whether the version is promoted."""
    champion = platform.version()
    platform.wait("a run that asks for approval", platform.waiting_runs)
    (run,) = platform.waiting_runs()
    candidate = run["parameters"]["version"]
    check(platform.version() == champion, "the champion changed before anybody approved")
    platform.report(f"{run['name']} digits v{champion} answers until somebody decides")
    if approval == "approved":
        platform.answer(run, decision="approve", name="Anna", reason="the new forms are here to stay")
        return True
    platform.report(platform.run("approve", candidate, "--decline", "--reason", "the new forms end on Friday").strip())
    platform.wait("the end of the run that asked", lambda: not platform.waiting_runs())
    printed = platform.run("retrain")
    check("was declined by" in printed, f"what was declined is judged again: {printed}")
    platform.report(re.findall(r"digits v.* was declined by .*", printed)[-1])
    last = platform.decisions()[-1]
    check((last.action, last.subject) == ("decline", f"digits v{candidate}"), "the ledger does not know of it")
    check(platform.version() == champion, "a version that was declined answers")
    return False


@dataclass(frozen=True)
class Accuracies:
    """Of the version that answers."""

    test: float
    plain: float  # on held-out digits as they are
    changed: float  # on the same digits, changed


def measure(platform: Platform, digits: Digits) -> Accuracies:
    sets = digits.test, digits.held_out, changed(digits.held_out)
    return Accuracies(*(platform.accuracy(split) for split in sets))


def close_loop(platform: Platform, digits: Digits, requests: int, approval: str | None) -> None:
    """Run the loop step by step; raises Failed at the first step that fails. What a person declines ends it."""
    first, before = platform.version(), measure(platform, digits)
    at_first = f"{before.test:.2%} on test images, {before.plain:.2%} on held-out digits"
    platform.report(f"digits v{first} answers: {at_first}, {before.changed:.2%} on the same digits changed")
    send_plain_traffic(platform, digits.traffic, requests)
    since, population = datetime.now(UTC), changed(digits.traffic)
    send_changed_traffic(platform, population, requests)
    label_the_loss(platform, population, since)
    if approval and not decide(platform, approval):
        return
    check_promotion(platform, digits, before, first)
    check_that_the_alarm_ends(platform, population, requests)
    refuse_sabotage(platform, digits)
    platform.run("rollback")
    check(platform.wait_for_version(lambda version: version == first), "the endpoint does not follow the rollback")
    check(measure(platform, digits) == before, "the version rolled back to answers otherwise than before")
    platform.report(f"rolled back: digits v{first} answers again")


def send_plain_traffic(platform: Platform, digits: Split, requests: int) -> None:
    """Monitoring finds nothing in digits as the training had them."""
    since = datetime.now(UTC)
    platform.send(digits, requests, seed=1)
    printed, verdict = platform.monitor(since)
    check(verdict["drift"]["verdict"] == "no drift", f"an alarm on plain traffic: {printed}")
    platform.report(f"{verdict['count']} unchanged predictions: {verdict['drift']['message']}")


def send_changed_traffic(platform: Platform, population: Split, requests: int) -> None:
    """Monitoring finds the drift and its cause; its event starts a retraining, which has nothing new to learn."""
    first, since = platform.version(), datetime.now(UTC)
    platform.send(population, requests, seed=2)
    printed, verdict = platform.monitor(since)
    explanations = {one["perturbation"] for one in verdict["drift"]["explanations"]}
    check(verdict["drift"]["verdict"] == "drift", f"no alarm on changed traffic: {printed}")
    known = explanations & {"thicken", "slant", "shift", "rotate"}
    check(bool(known), f"the drift is not explained: {verdict['message']}")
    platform.report(f"{verdict['count']} changed predictions: {verdict['message']}")
    platform.wait_for_retraining(1)
    check(platform.version() == first, "a retraining without new labels changed the champion")
    platform.report("the drift event started a retraining; without labels there was nothing new to learn")


def label_the_loss(platform: Platform, population: Split, since: datetime) -> None:
    """An auditor labels the changed digits since then; monitoring finds the loss, and its event starts the next retraining."""
    labelled = platform.label(population, since)
    printed, verdict = platform.monitor(since)
    check(verdict["accuracy"]["verdict"] == "worse", f"the loss of accuracy is not noticed: {printed}")
    platform.report(f"{labelled} audited: {verdict['message']}")
    platform.wait_for_retraining(2)


def check_promotion(platform: Platform, digits: Digits, before: Accuracies, first: str) -> None:
    """The next version answers, is right again on the changed digits, and lost nothing on the test images."""
    check(platform.wait_for_version(lambda version: version != first, 90), f"not promoted: {platform.gate_message()}")
    after, last = measure(platform, digits), platform.decisions()[-1]
    recovered = (after.changed - before.changed) / (before.plain - before.changed)
    platform.report(f"digits v{platform.version()} was promoted by {last.by}: {last.reason}")
    healed = f"{before.changed:.2%} → {after.changed:.2%}, {recovered:.0%} of the loss recovered"
    platform.report(f"on held-out changed digits {healed}")
    platform.report(f"on test images {before.test:.2%} → {after.test:.2%}")
    check(recovered >= MIN_RECOVERED, f"only {recovered:.0%} of the loss came back")
    # Of a few hundred images, one is more than MAX_TEST_LOSS.
    max_loss = max(MAX_TEST_LOSS, 1.5 / len(digits.test))
    check(before.test - after.test <= max_loss, f"test accuracy fell from {before.test:.4f} to {after.test:.4f}")


def refuse_sabotage(platform: Platform, digits: Digits) -> None:
    """The gate holds a candidate that learned from wrong labels."""
    second = platform.version()
    printed = platform.run("retrain", "--data", str(write_npz(platform.home / "sabotaged.npz", digits, seed=3)))
    check(": hold: " in printed, f"a sabotaged candidate was not held: {printed}")
    check(platform.version() == second, "a sabotaged candidate answers")
    platform.report(f"sabotaged: {re.findall(r'digits v.*: hold: .*', printed)[-1]}")


def main() -> None:
    """Print a line per step; exit code 1 where the loop does not close."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--recipe", default="compact")
    parser.add_argument("--requests", type=int, default=3000, help="predictions in each window")
    parser.add_argument("--audit", type=float, default=0.8, help="share of the predictions drawn for labelling")
    parser.add_argument("--approval", choices=("approved", "declined"), help="ask, and answer the question so")
    arguments = parser.parse_args()
    promotion = "ask" if arguments.approval else "automatic"
    digits = divide(arguments.data, arguments.requests)
    with tempfile.TemporaryDirectory(prefix="digits-loop-") as folder:
        home = Path(folder)
        data = write_npz(home / "digits.npz", digits)
        try:
            with running_platform(home, arguments.recipe, data, arguments.audit, promotion) as platform:
                close_loop(platform, digits, arguments.requests, arguments.approval)
        except Failed as failure:
            sys.exit(f"the loop does not close: {failure}")


if __name__ == "__main__":
    main()
