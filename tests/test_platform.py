"""The whole platform as a user meets it: `digits up` on free ports, on the bundled digits, with no MNIST to be had."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from conftest import PATIENCE_SECONDS, find_free_port, get, post, put_migrated_databases, wait_for
from PIL import Image

from bench import harness
from bench.faults import Load
from digits.data import datasets
from digits.data.datasets import Dataset
from digits.settings import Settings

ROOT = Path(__file__).parent.parent
PORTS = ("DIGITS_SERVICE_PORT", "DIGITS_MLFLOW_PORT", "DIGITS_PREFECT_PORT", "DIGITS_REPORTS_PORT")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Platform:
    """A running `digits up` and its command line."""

    def __init__(self, home: Path) -> None:
        outside = ("MLFLOW_", "PREFECT_", "DIGITS_", "BENTOML_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        ports = {name: str(find_free_port()) for name in PORTS}
        # Keras's cache and the network are out of reach, so that this is the machine with no MNIST.
        nowhere = {"HOME": str(home), "KERAS_HOME": str(home / "keras"), "HTTPS_PROXY": "http://127.0.0.1:9"}
        self.home, self.environment = (
            home,
            {
                **clean,
                **ports,
                **nowhere,
                "NO_PROXY": "127.0.0.1",
                "DIGITS_HOME": str(home),
                "DIGITS_RECIPE": "compact",
            },
        )
        self.url = f"http://127.0.0.1:{ports['DIGITS_SERVICE_PORT']}"
        self.prefect = f"http://127.0.0.1:{ports['DIGITS_PREFECT_PORT']}/api"
        self.ports = ports

    @property
    def prefect_login(self) -> httpx.BasicAuth:
        """As `digits up` generated it."""
        return httpx.BasicAuth(*(self.home / "prefect" / "login").read_text().split(":"))

    @property
    def mlflow_login(self) -> httpx.BasicAuth:
        """As `digits up` generated it."""
        return httpx.BasicAuth(*(self.home / "mlflow" / "login").read_text().split(":"))

    def start(self) -> str:
        """Start it and give what it printed up to the last line."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ops", "up"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if "Ctrl-C stops all of it" in line:
                return printed
        raise AssertionError(f"`digits up` ended early:\n{printed}")

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ops", *words]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300)

    def remaining_processes(self) -> list[str]:
        """Processes that still run with this DIGITS_HOME."""
        return [found for process in psutil.process_iter() if (found := self._look(process, _command_line))]

    def listening(self) -> dict[tuple[str, int], str]:
        """The TCP addresses that these processes listen on, with the command line of one that does."""
        found = [(process, self._look(process, psutil.Process.net_connections)) for process in psutil.process_iter()]
        open_sockets = ((one, process) for process, connections in found for one in connections or [])
        return {one.laddr: _command_line(process) for one, process in open_sockets if one.status == psutil.CONN_LISTEN}

    def is_background_training(self, process: psutil.Process) -> bool:
        return "--reason background" in (self._look(process, _command_line) or "")

    def _look(self, process: psutil.Process, look: Callable[[psutil.Process], Any]) -> Any:
        """What `look` finds of a process with this DIGITS_HOME; None for others and for one that ends meanwhile."""
        with suppress(psutil.Error):
            return look(process) if process.environ().get("DIGITS_HOME") == str(self.home) else None


def _command_line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("home"))
    platform.printed = platform.start()  # type: ignore[attr-defined]
    yield platform
    if platform.process.poll() is None:
        platform.stop()


@pytest.fixture(scope="module")
def dataset(platform: Platform) -> Dataset:
    current = datasets.current(platform.home / "datasets")
    assert current is not None
    return datasets.load(platform.home / "datasets", current)


def test_up_says_plainly_that_mnist_is_missing_and_goes_on(platform: Platform) -> None:
    printed: str = platform.printed  # type: ignore[attr-defined]
    assert "MNIST is unavailable" in printed
    assert "1,797 digits bundled with scikit-learn" in printed
    assert "digits v1 is the champion" in printed


def test_the_address_table_is_true(platform: Platform) -> None:
    printed: str = platform.printed  # type: ignore[attr-defined]
    addresses = re.findall(r"http://127\.0\.0\.1:\d+", printed)
    assert sorted(addresses) == sorted(f"http://127.0.0.1:{port}" for port in platform.ports.values())
    for address in addresses:
        assert httpx.get(address, follow_redirects=True, timeout=30, auth=platform.mlflow_login).status_code == 200
    assert platform.run("status").returncode == 0


def test_prefect_answers_only_with_the_password_of_the_table(platform: Platform) -> None:
    printed: str = platform.printed  # type: ignore[attr-defined]
    (login,) = re.findall(r"password to paste there +(digits:\S+)", printed)
    flows = f"{platform.prefect}/flows/count"
    assert [post(flows, json={}, auth=auth).status_code for auth in (None, ("digits", "guess"))] == [401, 401]
    assert post(flows, json={}, auth=httpx.BasicAuth(*login.split(":"))).json() > 0


def test_mlflow_answers_only_with_the_name_and_password_of_the_table(platform: Platform) -> None:
    printed: str = platform.printed  # type: ignore[attr-defined]
    ((name, password),) = re.findall(r"name (\w+), password +(\S+)", printed)
    search = f"http://127.0.0.1:{platform.ports['DIGITS_MLFLOW_PORT']}/api/2.0/mlflow/experiments/search"
    logins = (None, (name, "guess"), (name, password))
    answers = [post(search, json={"max_results": 9}, auth=login) for login in logins]
    assert [answer.status_code for answer in answers] == [401, 401, 200]
    assert "digits" in [experiment["name"] for experiment in answers[-1].json()["experiments"]]


def test_only_the_four_ports_listen_and_a_port_that_answers_runs_only(platform: Platform) -> None:
    listening, ports = platform.listening(), {("127.0.0.1", int(port)) for port in platform.ports.values()}
    assert ports <= set(listening)
    # Prefect's worker tells its runs over a port of the loopback to stop; it knows each by a token of 128 random bits.
    (control,) = set(listening) - ports
    assert control[0] == "127.0.0.1" and "prefect worker start" in listening[control]
    with socket.create_connection(control, timeout=60) as stranger:
        stranger.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        with suppress(ConnectionResetError):
            assert stranger.recv(100) == b""


def test_state_is_for_its_user_only(platform: Platform) -> None:
    open_to_others = [path for path in [platform.home, *platform.home.rglob("*")] if path.lstat().st_mode & 0o077]
    assert [path for path in open_to_others if not path.is_symlink()] == []
    assert {"digits.db", "mlflow", "prefect", "logs", "spool", "run"} <= {path.name for path in platform.home.iterdir()}


def test_a_second_up_says_that_it_runs_already(platform: Platform) -> None:
    again = platform.run("up")
    assert again.returncode == 1
    assert again.stderr.startswith("digits: the platform already runs on ")
    assert len(again.stderr.splitlines()) == 1
    assert platform.url in again.stdout


def test_all_taken_ports_are_named_with_their_settings(platform: Platform, tmp_path: Path) -> None:
    other, taken = (
        Platform(tmp_path),
        {name: platform.ports[name] for name in ("DIGITS_MLFLOW_PORT", "DIGITS_SERVICE_PORT")},
    )
    other.environment |= taken
    refused = other.run("up")
    assert refused.returncode == 1
    ports = "port {DIGITS_MLFLOW_PORT} for mlflow and port {DIGITS_SERVICE_PORT} for service".format(**taken)
    advice = "stop what listens there or set DIGITS_MLFLOW_PORT and DIGITS_SERVICE_PORT"
    assert refused.stderr == f"digits: {ports} are in use; {advice}\n"
    shown = other.run("status")
    assert shown.returncode == 1 and not re.search(r"\bup\b|digits v", shown.stdout)


def test_json_and_png_get_exactly_the_digits_of_the_keras_model(platform: Platform, dataset: Dataset) -> None:
    keras = _keras_champion(platform)
    images = dataset.test.images[:200]
    expected = np.asarray(keras(images, training=False)["probabilities"]).argmax(axis=1)
    with httpx.Client(base_url=platform.url, timeout=PATIENCE_SECONDS) as client:
        by_json = [client.post("/classify", json={"images": image.tolist()}).json()["digit"] for image in images]
        by_file = [client.post("/classify_file", files={"file": _png(image)}).json()["digit"] for image in images]
    assert by_json == expected.tolist()
    assert by_file == expected.tolist()


def test_the_curl_of_the_readme_gets_the_right_digit(platform: Platform) -> None:
    (command,) = re.findall(r"^curl .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    here = command.replace("http://127.0.0.1:3000", platform.url)
    answer = json.loads(subprocess.run(here, shell=True, cwd=ROOT, check=True, capture_output=True).stdout)
    assert answer["digit"] == 7
    assert {"id", "digit", "probability", "probabilities", "model_version", "image"} <= set(answer)


def test_predict_answers_about_files(platform: Platform, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "digit.png").write_bytes(_png(dataset.test.images[0]))
    (tmp_path / "text.png").write_text("no picture")
    done = platform.run("predict", str(tmp_path / "digit.png"), str(tmp_path / "text.png"))
    assert re.search(rf"digit\.png: {dataset.test.labels[0]} \(\d+\.\d%, digits v1\)", done.stdout)
    assert re.search(r'text\.png: the file begins with "no picture" and is no picture', done.stdout)
    assert done.returncode == 1
    direct = platform.run("predict", "--direct", str(tmp_path / "digit.png"))
    assert direct.stdout == done.stdout.splitlines(keepends=True)[0]
    assert direct.returncode == 0


def test_plain_traffic_is_no_drift_and_changed_traffic_is(platform: Platform) -> None:
    assert "labels of the audit sample" in platform.run("monitor").stderr
    sent = platform.run("traffic", "-n", "200", "--labels", "0.5", "--data", "bundled")
    assert re.search(r"200 answers, \d+\.\d% right, \d+ labelled", sent.stdout)
    plain = platform.run("monitor", "--since", "1h")
    assert "No drift" in plain.stderr, plain.stderr
    version = _forget_answers(platform)
    platform.run("traffic", "-n", "200", "--perturbation", "invert", "--data", "bundled")
    drifted = platform.run("monitor", "--since", "1h")
    assert "invert" in drifted.stderr.lower(), drifted.stderr
    # The newest folder may be that of the hourly schedule.
    report = Path(re.findall(r"report: (.*)", drifted.stderr)[-1])
    verdict = json.loads(report.with_name("verdict.json").read_text())
    assert verdict["drift"]["verdict"] == "drift"
    assert verdict["versions"] == [version]
    assert report.name == "report.html" and 10_000 < report.stat().st_size < 5_000_000


def test_retraining_on_the_same_data_replaces_nothing_and_says_why(platform: Platform) -> None:
    again = platform.run("retrain")
    assert again.returncode == 0, again.stderr
    assert "nothing new to learn: digits v1 has the same data, recipe, code and libraries" in again.stderr
    assert "evidence" not in again.stderr
    other = platform.run("retrain", "--seed", "1")
    assert re.search(r"digits v2: (hold|not enough evidence): ", other.stderr), other.stderr
    assert get(f"{platform.url}/about").json()["model_version"] == "1"


def test_the_inbox_is_taken_in_once_and_one_retraining_runs_at_a_time(platform: Platform, dataset: Dataset) -> None:
    inbox = platform.home / "inbox"
    new = 255 - (255 - dataset.train.images[:30]) // 2 * 2  # the same digits with other bits
    np.savez(inbox / "more.npz", images=new, labels=dataset.train.labels[:30])
    (inbox / "broken.csv").write_text("label,pixel0\n5,1\n")
    command = [sys.executable, "-m", "ops", "retrain"]
    first = subprocess.Popen(command, cwd=ROOT, env=platform.environment, stderr=subprocess.PIPE, text=True)
    _wait_for_slot(platform)
    second = platform.run("retrain")
    assert second.returncode == 1
    assert "another retraining is running" in second.stderr
    _, printed = first.communicate(timeout=300)
    assert first.returncode == 0, printed
    assert "read 30 labelled images, 30 of them new, from more.npz" in printed
    assert (inbox / "rejected" / "broken.csv.reason.txt").read_text().startswith("broken.csv")
    grown = datasets.current(platform.home / "datasets")
    assert grown != dataset.fingerprint and grown is not None
    extended = datasets.load(platform.home / "datasets", grown)
    assert len(extended.train) + len(extended.validation) == len(dataset.train) + len(dataset.validation) + 30
    assert np.array_equal(extended.test.images, dataset.test.images)
    assert [path.name for path in inbox.iterdir() if path.is_file()] == []


def test_promote_and_rollback_are_followed_by_the_service_and_recorded(platform: Platform) -> None:
    assert platform.run("promote", "2", "--reason", "to see it move").returncode == 0
    _wait_for_version(platform, "2")
    back = platform.run("rollback", "--reason", "to see it back")
    assert back.returncode == 0, back.stderr
    _wait_for_version(platform, "1")
    ledger = platform.run("ledger").stdout
    decisions = [line.split()[2:4] for line in ledger.splitlines() if line.startswith("20")]
    assert ["pin", "anchor"] in decisions
    actions = [action for action, subject in decisions if subject == "champion"]
    assert actions == ["promotion", "promotion", "rollback"]
    missing = platform.run("promote", "99")
    assert missing.returncode == 1
    assert missing.stderr.startswith("digits: the registry has no digits v99")


def test_the_schedules_are_in_prefect_and_a_deployment_runs(platform: Platform) -> None:
    found = post(f"{platform.prefect}/deployments/filter", json={}, auth=platform.prefect_login).json()
    schedules = {row["name"]: [one["schedule"]["cron"] for one in row["schedules"]] for row in found}
    assert schedules["Retrain daily"] == ["0 3 * * *"]
    assert schedules["Monitor hourly"] == ["0 * * * *"]
    monitor = next(row for row in found if row["name"] == "Monitor hourly")
    assert monitor["parameter_openapi_schema"]["properties"]["since"]["default"] == "24h"
    deadline = time.monotonic() + 300
    while (state := _end_of_run(platform, monitor["id"], deadline))["type"] == "CANCELLED":
        time.sleep(0.5)  # at the full hour the schedule's own run holds the only slot, and a second is cancelled
    assert state["type"] == "COMPLETED", state


def _end_of_run(platform: Platform, deployment: str, deadline: float) -> dict[str, Any]:
    """The last state of a new run of this deployment."""
    login, runs = platform.prefect_login, f"{platform.prefect}/flow_runs"
    run = post(f"{platform.prefect}/deployments/{deployment}/create_flow_run", json={}, auth=login).json()
    state: dict[str, Any] = {}
    while state.get("type") not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        assert time.monotonic() < deadline, (state, (platform.home / "logs" / "prefect.log").read_text()[-2000:])
        time.sleep(0.5)
        # Prefect's server once did not answer for a minute; the run ends all the same.
        with suppress(httpx.TransportError):
            state = get(f"{runs}/{run['id']}", auth=login).json()["state"]
    return state


def test_a_killed_service_comes_back(platform: Platform) -> None:
    servers = [p for p in psutil.process_iter() if _is_service(p, platform)]
    assert servers
    for server in servers:
        server.kill()
    deadline = time.monotonic() + 60
    while True:
        try:
            if get(f"{platform.url}/readyz").status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_backup_taken_under_load_answers_elsewhere_with_the_same_champion_ledger_and_log(
    platform: Platform, dataset: Dataset, tmp_path: Path
) -> None:
    with Load(platform.url, dataset.test.images[:100]) as load:
        deadline = time.monotonic() + 60
        while len(load.ids) < 50 and time.monotonic() < deadline:
            time.sleep(0.1)
        before = list(load.ids)
        done = platform.run("backup", str(tmp_path / "backup.tar"))
        assert done.returncode == 0, done.stderr
    assert len(before) >= 50 and not load.failed
    other = Platform(tmp_path / "elsewhere")
    assert other.run("restore", str(tmp_path / "backup.tar")).returncode == 0
    assert other.run("ledger").stdout == platform.run("ledger").stdout
    assert datasets.current(other.home / "datasets") == datasets.current(platform.home / "datasets")
    ports = {name.removeprefix("DIGITS_").lower(): int(port) for name, port in other.ports.items()}
    settings = Settings(
        home=other.home, mlflow_tracking_uri=f"http://127.0.0.1:{other.ports['DIGITS_MLFLOW_PORT']}", **ports
    )
    with (
        harness.mlflow(settings),
        harness.service(settings),
        httpx.Client(base_url=settings.service_url, timeout=30) as client,
    ):
        here, there = (get(f"{url}/about").json() for url in (platform.url, settings.service_url))
        assert (there["model_version"], there["warning"]) == (here["model_version"], None)
        assert there["metrics"] == here["metrics"]
        for id in before:
            assert client.get(f"/predictions/{id}").json() == get(f"{platform.url}/predictions/{id}").json()


@pytest.mark.skipif("DIGITS_MNIST" not in os.environ, reason="DIGITS_MNIST names no mnist.npz")
def test_compact_on_mnist_is_as_good_as_reported_and_served_exactly(platform: Platform) -> None:
    trained = platform.run("train", "--recipe", "compact", "--data", os.environ["DIGITS_MNIST"])
    assert trained.returncode == 0, trained.stderr
    version = re.search(r"digits v(\d+) is registered", trained.stdout)[1]  # type: ignore[index]
    assert platform.run("promote", version).returncode == 0
    _wait_for_version(platform, version)
    about = get(f"{platform.url}/about").json()
    assert about["metrics"]["test_accuracy"] >= 0.9765
    images = np.load(os.environ["DIGITS_MNIST"])["x_test"][:1000]
    expected = np.asarray(_keras_champion(platform, version)(images, training=False)["probabilities"]).argmax(axis=1)
    with httpx.Client(base_url=platform.url, timeout=PATIENCE_SECONDS) as client:
        by_json = [client.post("/classify", json={"images": image.tolist()}).json()["digit"] for image in images]
        by_file = [client.post("/classify_file", files={"file": _png(image)}).json()["digit"] for image in images]
    assert by_json == expected.tolist()
    assert by_file == expected.tolist()
    assert platform.run("rollback").returncode == 0
    _wait_for_version(platform, "1")


def test_ctrl_c_stops_everything_and_up_goes_on_with_the_same_state(platform: Platform) -> None:
    assert platform.stop() == 0
    assert platform.remaining_processes() == []
    printed = platform.start()
    assert "training one" not in printed
    assert get(f"{platform.url}/about").json()["model_version"] == "1"
    platform.process.kill()  # as a closed terminal may; the servers go on
    platform.process.wait(30)
    again = platform.run("up")
    assert again.returncode == 1 and "stop it with `digits down`" in again.stderr and platform.url in again.stdout
    for process in psutil.process_iter():
        if "supervisor.supervisord" in process.cmdline() and str(platform.home) in " ".join(process.cmdline()):
            process.kill()
    assert platform.remaining_processes() != []
    assert platform.run("down").stdout == "stopped\n"
    assert platform.remaining_processes() == []
    assert platform.run("status").returncode == 1


def test_a_better_recipe_is_trained_in_the_background_and_taken_up_again_after_an_interruption(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    platform.environment |= {"DIGITS_FIRST_RECIPE": "sigmoid", "DIGITS_RECIPE": "compact"}
    put_migrated_databases(tmp_path)
    line = rf"in training, promoted if better +{platform.prefect.removesuffix('/api')}/runs +compact, about 1 min; off with DIGITS_RECIPE=sigmoid"
    try:
        assert re.search(line, platform.start())
        (training,) = [process for process in psutil.process_iter() if platform.is_background_training(process)]
        wait_for(lambda: training.nice() == 19)
        wait_for(lambda: os.getsid(training.pid) == training.pid)
        assert platform.stop() == 0
        assert platform.remaining_processes() == []
        assert re.search(line, platform.start())
        assert "sigmoid" in platform.run("status").stdout
        _wait_for_version(platform, "2", seconds=300)
        assert get(f"{platform.url}/about").json()["recipe"]["name"] == "compact"
    finally:
        platform.stop()


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def _keras_champion(platform: Platform, version: str = "1") -> Any:
    """The Keras model of a version, as registered."""
    from models import backend

    keras, _ = backend.load()
    parameters = {"name": "digits", "version": version, "path": "model.keras"}
    mlflow = f"http://127.0.0.1:{platform.ports['DIGITS_MLFLOW_PORT']}"
    path = platform.home / "model.keras"
    answer = get(f"{mlflow}/model-versions/get-artifact", params=parameters, auth=platform.mlflow_login)
    path.write_bytes(answer.content)
    return keras.models.load_model(path)


def _forget_answers(platform: Platform) -> str:
    """Empty the prediction log; the version that answers."""
    from datetime import UTC, datetime

    from digits.storage import database, predictions

    while (about := get(f"{platform.url}/about").json())["log"]["waiting"]:
        time.sleep(0.1)
    engine = database.connect(f"sqlite:///{platform.home}/digits.db")
    predictions.delete_before(engine, datetime.now(UTC))
    version: str = about["model_version"]
    return version


def _wait_for_version(platform: Platform, version: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while get(f"{platform.url}/about").json()["model_version"] != version:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _wait_for_slot(platform: Platform) -> None:
    """Until a retraining holds the only slot."""
    limit = f"{platform.prefect}/v2/concurrency_limits/digits-retrain"
    deadline = time.monotonic() + 120
    while not get(limit, auth=platform.prefect_login).json().get("active_slots"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _is_service(process: psutil.Process, platform: Platform) -> bool:
    try:
        of_platform = process.environ().get("DIGITS_HOME") == str(platform.home)
        return of_platform and bool({"services", "services.classifier:DigitClassifier"} & set(process.cmdline()))
    except psutil.Error:
        return False
