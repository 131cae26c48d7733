"""A sweep as its users see it: killed, interrupted, resumed on a cluster, and its best recipe judged by the gate."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster, running
from conftest import find_free_port, running_mlflow, wait_for
from optuna import Study
from optuna.trial import FrozenTrial

from models import search
from models.registry import RegistryWriter, flatten
from models.training import Recipe

ROOT = Path(__file__).parent.parent
EPOCHS = 3
COMMAND = [sys.executable, "-m", "ops", "sweep", "--name", "quick", "--data", "bundled", "--epochs", str(EPOCHS)]
FINISHED = r"^trial (\d+): validation accuracy"

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


class Sweep:
    """A DIGITS_HOME with an MLflow and a Prefect server, and the calls of `digits sweep` on it."""

    def __init__(self, home: Path, mlflow: str, prefect: str) -> None:
        outside = ("MLFLOW_", "PREFECT_", "DIGITS_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        settings = {"DIGITS_HOME": str(home), "MLFLOW_TRACKING_URI": mlflow, "PREFECT_API_URL": prefect}
        self.home, self.mlflow, self.environment = home, mlflow, {**clean, **settings}

    @contextmanager
    def call(self, *words: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """`digits sweep`, whose lines are read from its standard error."""
        process = subprocess.Popen(
            [*COMMAND, *words],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for one in psutil.process_iter():
                if self.owns(one):
                    one.kill()
            process.wait()

    def owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("DIGITS_HOME") == str(self.home)
        except psutil.Error:
            return False

    def registry(self) -> RegistryWriter:
        return RegistryWriter(self.mlflow)

    def study(self) -> Study:
        """The study, as the last call left it."""
        (fingerprint,) = [path.name for path in (self.home / "datasets").iterdir() if path.is_dir()]
        return search.open_study(self.home / "sweeps", "quick", fingerprint, EPOCHS)

    def complete(self) -> list[FrozenTrial]:
        """The complete trials, the best first."""
        return search.ranked(self.study())

    def runs(self) -> tuple[list[Any], list[Any]]:
        """The parents and the trials, in MLflow; those of other tests left out."""
        registry = self.registry()
        found = registry.client.search_runs([registry.experiment_id], max_results=1000)
        parents = [run for run in found if run.data.tags.get("study") == self.study().study_name]
        ids = {run.info.run_id for run in parents}
        return parents, [run for run in found if run.data.tags.get("mlflow.parentRunId") in ids]

    def running(self) -> list[str]:
        """The numbers of the running trials."""
        return [run.data.tags["trial"] for run in self.runs()[1] if run.info.status == "RUNNING"]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own: the versions and runs of other files are not among those of the sweep."""
    port = find_free_port()
    with running_mlflow(tmp_path_factory.mktemp("mlflow"), port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sweep(mlflow: str, prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("home"), mlflow, prefect)


def ignores_interrupts(process: psutil.Process) -> bool:
    """Whether the mask of its main thread blocks SIGINT."""
    blocked = re.search(r"^SigBlk:\s+([0-9a-f]+)$", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    assert blocked
    return bool(int(blocked[1], 16) >> (signal.SIGINT - 1) & 1)


def test_a_killed_sweep_leaves_no_process_behind_and_keeps_its_trials(sweep: Sweep) -> None:
    with sweep.call("--minutes", "10", "--workers", "2") as process:
        read_until(process, FINISHED)
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) == 2
        assert all(map(ignores_interrupts, workers))
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(sweep.owns, psutil.process_iter())), seconds=60)
    assert sweep.complete()
    (parent,), trials = sweep.runs()
    assert parent.info.status == "RUNNING"
    assert {"FINISHED", "RUNNING"} <= {run.info.status for run in trials}


def test_it_resumes_and_ctrl_c_keeps_finished_trials(sweep: Sweep) -> None:
    before = {trial.number for trial in sweep.complete()}
    with sweep.call("--minutes", "10", "--workers", "1") as process:
        printed = read_until(process, FINISHED)
        assert re.search(r"^queued \d trials again that were running when the last call was killed$", printed, re.M)
        wait_for(lambda: "RUNNING" in {run.info.status for run in sweep.runs()[1]}, seconds=60)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers, too
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed + rest
    assert re.search(r"^trial \d+: queued again after \d epochs: interrupted: ", rest, re.M)
    assert re.search(r"^\d+ trials so far, \d+ of them complete$", rest, re.M)
    assert re.search(r"^- trial \d+: \d+\.\d\d % \[", rest, re.M)
    assert before < {trial.number for trial in sweep.complete()}
    (parent,), trials = sweep.runs()
    assert parent.info.status == "KILLED"
    assert "RUNNING" not in {run.info.status for run in trials}


def test_on_a_cluster_a_killed_worker_costs_time_and_no_result(sweep: Sweep, cluster: Cluster) -> None:
    before = {trial.number for trial in sweep.complete()}
    with sweep.call("--minutes", "10", DIGITS_DASK_ADDRESS=cluster.address) as process:
        said = read_until(process, FINISHED)
        wait_for(lambda: len(sweep.running()) == 2, seconds=60)
        victim, running_trials = cluster.workers()[0], sweep.running()
        victim.kill()
        for number in running_trials:
            if not re.search(rf"^trial {number}: ", said, re.M):
                said += read_until(process, rf"^trial {number}: ")
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=120)[1]
    for number in running_trials:
        assert re.search(rf"^trial {number}: (validation accuracy|pruned after)", said, re.M), said
    assert not re.search(r"^trial \d+: .*: failed", said, re.M)
    assert victim.pid not in [worker.pid for worker in cluster.workers()]
    spread = [trial for trial in sweep.complete() if trial.number not in before]
    assert trained_alone(search.recipe_of(spread[0]), sweep) == spread[0].value


def test_at_the_end_of_the_time_the_best_is_registered_and_judged(sweep: Sweep) -> None:
    with sweep.call("--minutes", "0") as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    decided = re.fullmatch(r"digits v(\d+): (promote|hold): .*\n", printed)
    assert decided
    best = sweep.complete()[0]
    registry = sweep.registry()
    registered = registry.client.get_model_version("digits", decided[1])
    assert registered.tags["gate"] == decided[2]
    run = registry.client.get_run(registered.run_id)
    assert run.data.params == {
        name: str(value) for name, value in flatten(search.recipe_of(best).model_dump(mode="json")).items()
    }
    assert run.data.metrics["test_accuracy"] > 0.8
    assert run.data.metrics["val_accuracy"] == pytest.approx(best.value, abs=0.02)  # other threads, other bits
    (parent,), trials = sweep.runs()
    assert parent.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "RUNNING" not in {trial.info.status for trial in trials}


def trained_alone(recipe: Recipe, sweep: Sweep) -> float:
    """The validation accuracy of the recipe on one thread, as a worker has it, in a process of its own."""
    program = (
        "import sys; from pathlib import Path; from digits.data import datasets; from models import search;"
        "from models.training import Recipe; recipe = Recipe.model_validate_json(sys.argv[1]);"
        "dataset = datasets.load(Path(sys.argv[2]), sys.argv[3]);"
        "print(search.train(recipe, dataset, lambda *_: True).accuracy)"
    )
    (dataset,) = [path for path in (sweep.home / "datasets").iterdir() if path.is_dir()]
    words = [recipe.model_dump_json(), str(dataset.parent), dataset.name]
    one_thread = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env={**sweep.environment, **one_thread},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_every_trial_is_a_run_with_its_recipe_and_curves(sweep: Sweep) -> None:
    _, runs = sweep.runs()
    numbered = {int(run.data.tags["trial"]): run for run in runs if "outcome" in run.data.tags}
    client = sweep.registry().client
    for trial in sweep.complete():
        run = numbered[trial.number]
        assert run.data.params == {
            name: str(value) for name, value in flatten(search.recipe_of(trial).model_dump(mode="json")).items()
        }
        assert run.data.metrics["validation_accuracy"] == trial.value
        assert "test_accuracy" not in run.data.metrics
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val_accuracy")]
        assert steps == list(range(1, len(steps) + 1)) and steps


def read_until(process: "subprocess.Popen[str]", pattern: str) -> str:
    """What the process says up to the line that matches."""
    assert process.stderr is not None
    printed = ""
    for line in process.stderr:
        printed += line
        if re.search(pattern, line):
            return printed
    raise AssertionError(f"the process ended early:\n{printed}")
