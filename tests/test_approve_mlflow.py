"""The way of a promotion that a person approves, through a real MLflow server, a real Prefect server and the service."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import ROOT, find_free_port, get, post, running_mlflow
from conftest import Registry as Memory
from prefect.client.schemas.objects import FlowRun
from serving import Service, serving
from test_approve import answer, runs, work
from test_deployments import settings_of
from typer.testing import CliRunner

from digits.data import datasets, sources
from digits.settings import load_settings
from digits.storage import ledger
from flows import approve, deployments, promote, retrain
from models import recipes
from models.connections import Platform
from models.registry_reader import MODEL_NAME
from ops.cli import app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# The gate finds the second one better than the first one on any test digits.
RECIPES = {
    "hasty": recipes.SIGMOID.model_copy(update={"name": "hasty", "epochs": 1}),
    "thorough": recipes.SIGMOID.model_copy(update={"name": "thorough", "epochs": 15}),
}


@dataclass
class Site:
    """A platform that asks; its servers and its service run."""

    environment: dict[str, str]
    service: Service
    trained: int = 0

    def train(self) -> str:
        """A version that the gate would promote in the place of the first champion; returns the decision in a sentence."""
        self.trained += 1
        return retrain.retrain("thorough", seed=self.trained)

    def retrain_again(self) -> str:
        return retrain.retrain("thorough", seed=self.trained)

    def digits(self, *arguments: str) -> str:
        """What the command prints."""
        command = [sys.executable, "-m", "ops", *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **self.environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def serves(self, version: str) -> bool:
        """Whether the service comes to serve the version."""
        self.service.wait_for(lambda: self.service.version() == version, seconds=30)
        return True

    def champions(self) -> tuple[str | None, str, list[str | None]]:
        """By MLflow's aliases, by the service, and by the ledger."""
        entries = ledger.replacements(Platform().engine)
        return aliases().get("champion"), self.service.version(), [entry.after for entry in entries]


def aliases() -> dict[str, str]:
    found: dict[str, str] = Platform().registry.client.get_registered_model(MODEL_NAME).aliases
    return found


def approval_tags(version: str) -> tuple[str | None, ...]:
    """State, person and reason, as MLflow has them."""
    tags = Platform().registry.version_tags(version)
    return tuple(tags.get(name) for name in ("approval", "approval_by", "approval_reason"))


@pytest.fixture(scope="module")
def running(prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home, port = tmp_path_factory.mktemp("home"), find_free_port()
    mlflow = f"http://127.0.0.1:{port}"
    bundled = sources.read("bundled", mnist=None, cache=home)
    datasets.save(bundled, home / "datasets")
    datasets.set_current(home / "datasets", bundled.fingerprint)
    deployments.register(settings_of(prefect))
    environment = {
        "DIGITS_HOME": str(home),
        "DIGITS_PROMOTION": "ask",
        "MLFLOW_TRACKING_URI": mlflow,
        "PREFECT_API_URL": prefect,
    }
    with running_mlflow(tmp_path_factory.mktemp("mlflow"), port), serving(home, Memory(mlflow)) as service:
        yield Site(environment, service)


@pytest.fixture
def site(running: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site with its first champion, v1, whatever an earlier test promoted."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(recipes, "find", RECIPES.__getitem__)
    monkeypatch.setattr(recipes, "floor", lambda _: 0.3)
    champion = Platform().models.registry.version()
    if champion is None:
        assert "promote: there is no champion" in retrain.retrain("hasty")
    elif champion != "1":
        promote.by_hand(Platform(), "1", "the first one again")
    assert running.serves("1")
    return running


def ask(site: Site) -> tuple[str, FlowRun]:
    """Train a candidate that then waits for approval while nothing else changes. Returns the version and the suspended run."""
    before = site.champions(), aliases()
    said = site.train()
    version = max(Platform().registry.tagged("approval", "waiting"), key=int)
    assert said.startswith(f"digits v{version}: promote: ") and said.endswith(f"`digits approve {version}`")
    run = work(version)
    assert run.name == f"Promote digits v{version}?" and run.state_name == "Suspended"
    # What else happens on a platform meanwhile.
    assert site.retrain_again() == f"digits v{version} waits for approval: `digits approve {version}`"
    approve.hold()
    assert (site.champions(), aliases()) == before
    (line,) = waiting_in_status()
    assert re.fullmatch(rf"digits v{version} +since 20\d\d-\d\d-\d\d \d\d:\d\d UTC: `digits approve {version}`", line)
    (run,) = [run for run in runs() if run.parameters == {"version": version}]
    assert run.state_name == "Suspended"
    return version, run


def waiting_in_status() -> list[str]:
    """What `digits status` prints of each version that waits."""
    printed = CliRunner().invoke(app, ["status"]).output
    return re.findall("^waits for approval +(.*?) *$", printed, re.MULTILINE)


def page(site: Site, run: FlowRun) -> str:
    """The evidence on the page of a run, as Markdown."""
    wanted = {"flow_runs": {"id": {"any_": [str(run.id)]}}}
    (found,) = post(f"{site.environment['PREFECT_API_URL']}/artifacts/filter", json=wanted).json()
    text: str = found["data"]
    return text


def test_approved_in_a_terminal(site: Site) -> None:
    version, run = ask(site)
    evidence = page(site, run)
    assert evidence.startswith(f"Shall digits v{version} replace v1 as the champion?")
    assert "| anchor | 270 |" in evidence and f"/#/models/digits/versions/{version}" in evidence
    form = get(f"{site.environment['PREFECT_API_URL']}/flow_runs/{run.id}/input/suspended-answer-description").json()
    assert evidence in form
    said = site.digits("approve", version, "--reason", "better on every set")
    by = ledger.user()
    assert said == f"digits v{version}: approved by {by}: better on every set"
    assert site.serves(version) and aliases() == {"champion": version, "previous": "1"}
    assert approval_tags(version) == ("approved", by, "better on every set")
    last = ledger.replacements(Platform().engine)[-1]
    assert (last.before, last.after, last.by) == ("1", version, by) and last.evidence["anchor: images"] == 270
    assert ended(run) == ("Completed", said)


def test_declined_in_prefect(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    version, run = ask(site)
    before = site.champions(), aliases()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{find_free_port()}")
    (line,) = waiting_in_status()
    assert line.startswith("unknown ") and "does not answer" in line
    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.environment["MLFLOW_TRACKING_URI"])
    answer(run, decision="decline", name="Anna", reason="not before the holidays")
    assert work(version).state_name == "Completed"
    assert (site.champions(), aliases()) == before and not waiting_in_status()
    by = "Anna (in Prefect)"
    assert approval_tags(version) == ("declined", by, "not before the holidays")
    last = ledger.entries(Platform().engine)[-1]
    assert (last.action, last.subject, last.by) == ("decline", f"digits v{version}", by)
    assert ended(run) == ("Completed", f"digits v{version}: declined by {by}: not before the holidays")
    assert "was declined by Anna (in Prefect)" in site.retrain_again()


def test_held_because_nobody_answers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    version, run = ask(site)
    before = site.champions(), aliases()
    monkeypatch.setenv("DIGITS_APPROVAL_HOURS", "0.0001")
    approve.hold()
    assert (site.champions(), aliases()) == before
    assert approval_tags(version) == ("held", "", "nobody decided within 0.0001 hours")
    assert ended(run) == ("Completed", f"digits v{version}: held: nobody decided within 0.0001 hours")
    assert site.digits("approve") == "no version waits for approval"
    assert load_settings().promotion == "ask" and "is held, nobody decided" in site.retrain_again()


def ended(run: FlowRun) -> tuple[Any, Any]:
    """Name and message of the state of a run."""
    (found,) = [one for one in runs() if one.id == run.id]
    assert found.state is not None
    return found.state.name, found.state.message
