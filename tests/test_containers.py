"""The images and the compose file, really built and run: a fresh stack ends with a champion that answers, and stays whole."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import find_free_port, get

from digits.data import sources

ROOT = Path(__file__).parent.parent
BASE = "docker.io/library/python:3.11-slim-bookworm"
IMAGES = {"DIGITS_FLOWS_IMAGE": "digits-flows:test", "DIGITS_SERVING_IMAGE": "digits-serving:test"}
PORTS = ("DIGITS_SERVICE_PORT", "DIGITS_MLFLOW_PORT", "DIGITS_PREFECT_PORT", "DIGITS_REPORTS_PORT")
COMPOSE = {"podman": [str(Path(sys.executable).with_name("podman-compose"))], "docker": ["docker", "compose"]}

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.containers, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def engine() -> str:
    """Docker or Podman, whichever runs a container here."""
    said = "neither is installed"
    for name in filter(shutil.which, COMPOSE):
        tried = subprocess.run([name, "run", "--rm", BASE, "true"], capture_output=True, text=True, timeout=300)
        if tried.returncode == 0:
            return name
        said = tried.stderr.strip().splitlines()[-1]
    pytest.skip(f"neither Podman nor Docker runs a container here: {said}")


class Stack:
    """The compose file under a project name of its own, with its own ports and secrets."""

    def __init__(self, engine: str, folder: Path) -> None:
        ports = {name: str(find_free_port()) for name in PORTS}
        outside = ("DIGITS_", "MLFLOW_", "PREFECT_", "POSTGRES_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        self.engine, self.environment = engine, {**clean, **ports, **IMAGES}
        self.project = f"digits-test-{ports['DIGITS_SERVICE_PORT']}"
        self.secrets = self._generate(folder)
        self.service, self.mlflow, self.prefect, self.reports = (f"http://127.0.0.1:{ports[name]}" for name in PORTS)
        self.api = httpx.Client(
            base_url=f"{self.prefect}/api", auth=("admin", self.secrets["PREFECT_PASSWORD"]), timeout=30
        )

    def _generate(self, folder: Path) -> dict[str, str]:
        """The secrets that `make compose-up` generates on first use."""
        (folder / "docker").mkdir()
        for name in ("Makefile", "docker/compose.yaml"):
            shutil.copy(ROOT / name, folder / name)
        subprocess.run(["make", "--directory", folder, "docker/.env"], check=True, stdout=subprocess.DEVNULL)
        self.env_file, self.override = folder / "docker" / ".env", folder / "docker" / "override.yaml"
        # No training in the background, which would keep others waiting.
        no_more = {"environment": {"DIGITS_RECIPE": "compact"}}
        self.override.write_text(json.dumps({"services": {"bootstrap": no_more, "flows": no_more}}))
        return dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())

    def compose(self, *words: str) -> None:
        files = ["-f", str(ROOT / "docker" / "compose.yaml"), "-f", str(self.override)]
        command = [*COMPOSE[self.engine], "-p", self.project, *files]
        done = subprocess.run(
            [*command, "--env-file", str(self.env_file), *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:]

    def run(self, *words: str) -> str:
        done = subprocess.run([self.engine, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def container(self, service: str) -> str:
        names = self.run("ps", "-a", "--format", "{{.Names}}").splitlines()
        (name,) = [name for name in names if re.fullmatch(rf"{self.project}[_-]{service}[_-]1", name)]
        return name

    def execute(self, service: str, *command: str) -> str:
        return self.run("exec", self.container(service), *command)

    def logs(self) -> str:
        """The end of what each of our own containers has said."""
        said = []
        for service in ("mlflow", "prefect", "flows", "bootstrap", "service"):
            done = subprocess.run(
                [self.engine, "logs", "--tail", "15", self.container(service)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            said.append(f"{service}:\n{done.stdout}")
        return "\n".join(said)

    def wait_for(self, condition: Callable[[], object], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not self._holds(condition):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(1)

    @staticmethod
    def _holds(condition: Callable[[], object]) -> bool:
        try:
            return bool(condition())
        except (httpx.TransportError, ValueError):  # it is starting
            return False

    def wait_ready(self) -> None:
        self.wait_for(lambda: get(f"{self.service}/readyz", timeout=10).status_code == 200)

    def retrainings(self) -> list[dict[str, Any]]:
        """Those that were started, oldest first."""
        query = {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_ASC"}
        rows: list[dict[str, Any]] = self.api.post("/flow_runs/filter", json=query).json()
        return [row for row in rows if row["start_time"]]


@pytest.fixture(scope="module")
def stack(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(engine, tmp_path_factory.mktemp("stack"))
    stack.compose("build")
    try:
        stack.compose("up", "-d")
        yield stack
    finally:
        stack.compose("down", "--volumes")


def test_the_serving_image_is_small_and_holds_what_serving_needs(stack: Stack) -> None:
    image = IMAGES["DIGITS_SERVING_IMAGE"]
    # 690 MB, of which OpenCV takes 120 MB
    assert int(stack.run("image", "inspect", "--format", "{{.Size}}", image)) < 720_000_000
    ask = (
        "import importlib.metadata as m, json, os; "
        "print(json.dumps([os.getuid(), sorted({d.name.lower() for d in m.distributions()}), os.listdir('/app')]))"
    )
    uid, installed, files = json.loads(
        stack.run("run", "--rm", "--read-only", "--tmpfs", "/tmp", image, "python", "-c", ask)
    )
    assert uid == 10001
    assert {"bentoml", "onnxruntime", "psycopg"} <= set(installed)
    assert not {"tensorflow", "keras", "prefect", "evidently", "mlflow", "mlflow-skinny", "uv"} & set(installed)
    assert set(files) == {".venv", "pyproject.toml", "uv.lock", "digits", "models", "services"}


def test_up_ends_with_a_promoted_champion_that_answers_right(stack: Stack) -> None:
    stack.wait_ready()
    with (ROOT / "docs" / "seven.png").open("rb") as picture:
        answer = httpx.post(f"{stack.service}/classify_file", files={"file": picture}, timeout=30).json()
    assert (answer["digit"], answer["model_version"]) == (7, "1")
    test = sources.read("bundled", mnist=None, cache=Path("nowhere")).test
    body = httpx.post(f"{stack.service}/classify_bulk", content=test.images[:200].tobytes(), timeout=30).json()
    assert sum(map(int.__eq__, body["digits"], test.labels[:200].tolist())) >= 180
    assert "promot" in stack.execute("flows", "python", "-m", "ops", "ledger")
    # In one of many runs, on a busy machine, the flows' container did not reach the endpoint at first.
    traffic = [stack.engine, "exec", stack.container("flows"), "python", "-m", "ops", "traffic", "-n", "5"]
    stack.wait_for(lambda: "5 answers" in subprocess.run(traffic, capture_output=True, text=True).stdout, 60)
    assert httpx.get(f"{stack.service}/about", timeout=30).json()["run_url"].startswith(f"{stack.mlflow}/#/")
    (first,) = stack.retrainings()
    assert first["state_type"] == "COMPLETED" and "first champion" in first["tags"]


def test_the_servers_let_in_whom_they_know(stack: Stack) -> None:
    stack.wait_ready()
    runs = f"{stack.mlflow}/api/2.0/mlflow/registered-models/get?name=digits"
    assert get(runs).status_code == 401
    assert get(runs, auth=("admin", stack.secrets["MLFLOW_PASSWORD"])).status_code == 200
    assert get(f"{stack.prefect}/api/work_pools/digits").status_code == 401
    assert stack.api.get("/work_pools/digits").json()["type"] == "process"
    for address in (stack.prefect, stack.reports, f"{stack.service}/"):
        assert "<html" in httpx.get(address, follow_redirects=True, timeout=30).text.lower()
    logs = stack.logs()
    assert not [name for name, secret in stack.secrets.items() if secret in logs]


def test_the_two_commands_of_the_backup_hold_the_answers_and_the_versions(stack: Stack) -> None:
    stack.wait_ready()
    image = httpx.get(f"{stack.service}/samples", timeout=30).json()["samples"][0]["image"]
    id = httpx.post(f"{stack.service}/classify", json={"images": image}, timeout=30).json()["id"]
    stack.wait_for(lambda: get(f"{stack.service}/predictions/{id}").status_code == 200, 60)
    assert id in stack.execute("postgres", "pg_dumpall", "-U", "postgres")
    volumes = ("-v", f"{stack.project}_mlflow:/mlflow:ro", "-v", f"{stack.project}_state:/state:ro")
    packed = "tar -cf - /mlflow /state | tar -tf -"
    listed = stack.run("run", "--rm", *volumes, IMAGES["DIGITS_FLOWS_IMAGE"], "sh", "-c", packed)
    assert "model.onnx" in listed and "state/datasets/current" in listed


def test_a_container_writes_nowhere_but_where_it_should_and_its_health_is_asked_for(stack: Stack) -> None:
    for service in ("service", "flows"):
        write = "import pathlib\ntry: pathlib.Path('/app/x').touch()\nexcept OSError as error: print(error.strerror)"
        assert stack.execute(service, "python", "-c", write).strip() in ("Read-only file system", "Permission denied")
        assert stack.execute(service, "id", "-u").strip() == "10001"
    (check,) = re.findall(r"HEALTHCHECK .*\n\s+CMD (\[.*\])", (ROOT / "docker" / "serving.Dockerfile").read_text())
    stack.execute("service", *json.loads(check))


def test_a_worker_killed_in_a_training_comes_back_and_leaves_no_run_behind(stack: Stack) -> None:
    stack.wait_ready()
    daily = stack.api.get("/deployments/name/retrain/Retrain daily").json()["id"]
    # Its training lasts longer than the kill takes on a busy machine.
    long = {"parameters": {"seed": 1, "recipe": "ensemble"}}
    run = stack.api.post(f"/deployments/{daily}/create_flow_run", json=long).json()["id"]
    fitting = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"name": {"like_": "fit"}}}
    stack.wait_for(lambda: stack.api.post("/task_runs/filter", json=fitting).json(), 120)
    assert stack.api.get(f"/flow_runs/{run}").json()["state_type"] == "RUNNING"
    kill = "import psutil; [p.kill() for p in psutil.process_iter() if 'worker' in p.cmdline()]"
    subprocess.run([stack.engine, "exec", stack.container("flows"), "python", "-c", kill], timeout=60)
    stack.wait_for(lambda: stack.api.get(f"/flow_runs/{run}").json()["state_type"] == "CRASHED", 120)
    assert "died with its worker" in stack.api.get(f"/flow_runs/{run}").json()["state"]["message"]
    monitor = stack.api.get("/deployments/name/monitor/Monitor hourly").json()["id"]
    next_run = stack.api.post(f"/deployments/{monitor}/create_flow_run", json={}).json()["id"]
    stack.wait_for(lambda: stack.api.get(f"/flow_runs/{next_run}").json()["state_type"] == "COMPLETED", 180)


def test_down_and_up_keeps_everything(stack: Stack) -> None:
    stack.wait_ready()
    image = sources.read("bundled", mnist=None, cache=Path("nowhere")).test.images[0]
    before = httpx.post(f"{stack.service}/classify", json={"images": image.tolist()}, timeout=30).json()
    ledger = stack.execute("flows", "python", "-m", "ops", "ledger")
    retrainings = [(run["id"], run["state_type"]) for run in stack.retrainings()]
    stack.compose("down")
    stack.compose("up", "-d")
    stack.wait_ready()
    after = httpx.post(f"{stack.service}/classify", json={"images": image.tolist()}, timeout=30).json()
    assert [after[name] for name in ("digit", "model_version")] == [before[name] for name in ("digit", "model_version")]
    logged = f"{stack.service}/predictions/{before['id']}"
    stack.wait_for(lambda: get(logged).status_code == 200, 60)  # the service may be ready before its database is
    assert get(logged).json()["digit"] == before["digit"]
    stack.wait_for(
        lambda: "Exited (0)" in stack.run("ps", "-a", "--filter", f"name={stack.container('bootstrap')}"), 180
    )
    stack.wait_for(lambda: stack.api.get("/health").json())
    assert [(run["id"], run["state_type"]) for run in stack.retrainings()] == retrainings
    assert stack.execute("flows", "python", "-m", "ops", "ledger") == ledger
