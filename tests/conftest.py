"""Real things shared by the tests: a small champion, a registry that serves it, a free port."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine

from digits import files
from digits.reference import Reference, from_bytes
from digits.storage import database

if TYPE_CHECKING:
    from postgres import Postgres
    from serving import Service

    from digits.data.datasets import Dataset
    from digits.images import Split

Files = dict[str, bytes]

ROOT = Path(__file__).parent.parent
# Kept for the next session, as pytest's own cache is.
MIGRATED = ROOT / ".pytest_cache" / "migrated"

# An answer may take longer than httpx's five seconds on a busy machine.
PATIENCE_SECONDS = 60
# One for all requests: reading the certificates takes 30 ms of processor time.
TLS = httpx.create_ssl_context()
get, post = (partial(ask, timeout=PATIENCE_SECONDS, verify=TLS) for ask in (httpx.get, httpx.post))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests may take longest come first: two processes share the files, and the longest at the end would run alone."""
    limits: dict[Path, float] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            timeout = item.get_closest_marker("timeout")
            limits[item.path] = max(limits.get(item.path, 0), timeout.args[0] if timeout else 300)
    items.sort(key=lambda item: -limits.get(item.path, 0))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A test starts without MLFLOW_TRACKING_URI, and what it or a library sets in the environment ends with it.

    MLflow writes its client's address there, also for a fixture of the session.
    """
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def enlarge(small: NDArray[np.float64]) -> NDArray[np.uint8]:
    """scikit-learn's 8 x 8 digits of 0 to 16, each pixel tripled, in the middle of 28 x 28."""
    large = np.kron(small * (255 / 16), np.ones((1, 3, 3)))
    return np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)


def linear_model(images: NDArray[np.uint8], labels: NDArray[np.int_], sharpness: float) -> bytes:
    """A ridge regression onto the ten digits as an ONNX model from uint8 images to probabilities."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    inputs = np.pad(images.reshape(len(images), -1) / 255, ((0, 0), (0, 1)), constant_values=1)
    weights = np.linalg.solve(inputs.T @ inputs + 20 * np.eye(785), inputs.T @ np.eye(10)[labels]) * sharpness
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weights", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    constants = {
        "flat": np.array([-1, 784]),
        "weights": (weights[:784] / 255).astype(np.float32),
        "bias": weights[784].astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def version_files(sharpness: float = 12) -> Files:
    """model.onnx, reference.npz and card.json of a version; another sharpness is another model with the same digits."""
    from sklearn.datasets import load_digits

    from models import conformal, onnx_model

    digits = load_digits()
    images, labels = enlarge(digits.images), digits.target
    model = linear_model(images[:1200], labels[:1200], sharpness)
    probabilities = onnx_model.load(model).predict_proba(images[1200:])
    sample = Reference(images[1200:], labels[1200:].astype(np.uint8), probabilities)
    files = {"model.onnx": model, "reference.npz": sample.to_bytes()}
    card: dict[str, Any] = {
        "recipe": {"name": "linear", "seed": 0},
        "dataset": "0123456789abcdef",
        "conformal": asdict(conformal.calibrate(probabilities, sample.labels)),
        "metrics": {"test_accuracy": float((probabilities.argmax(1) == labels[1200:]).mean())},
        "run_id": "5f3c",
        "experiment_id": "1",
        "created_at": "2026-01-02T12:00:00+00:00",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    return {**files, "card.json": json.dumps(card).encode()}


@pytest.fixture(scope="session")
def champion_files() -> Files:
    """A version that answers scikit-learn's digits: model.onnx, reference.npz and card.json by name."""
    return version_files()


@pytest.fixture(scope="session")
def other_files() -> Files:
    """The same digits from a less certain model."""
    return version_files(sharpness=3)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a path, not what it leads to, belong to another user than root; who may not change owners becomes the other user."""
    if os.geteuid() == 0:
        os.chown(path, 54_321, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54_321)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    return find_free_port()


@dataclass
class Registry:
    """The three routes of MLflow's server that the champion is fetched over, from memory."""

    uri: str
    run_prefix: str = "5f3c"
    broken: int | None = None  # the status it answers everything with
    versions: dict[str, Files] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    promoted: set[str] = field(default_factory=set)  # the digests that a ledger would hold

    def promote(self, version: str, files: Files) -> None:
        """Register a version and make it the champion, as `digits promote` does."""
        self.versions[version] = dict(files)
        self.aliases["champion"] = version
        if "card.json" in files:
            self.promoted.add(hashlib.sha256(files["card.json"]).hexdigest())

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        """Status and body, as MLflow 3.17 gives them."""
        self.asked.append(query.get("path", query.get("alias", path)))
        if self.broken:
            return self.broken, b"not now"
        if path == "/api/2.0/mlflow/registered-models/alias":
            if not self.versions:
                return (
                    404,
                    b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=digits not found"}',
                )
            if query["alias"] not in self.aliases:
                return 400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias not found."}'
            version = self.aliases[query["alias"]]
            found = {"version": version, "run_id": f"{self.run_prefix}{version}"}
            return 200, json.dumps({"model_version": found}).encode()
        if path == "/model-versions/get-artifact":
            files = self.versions.get(query["version"])
            if files is None:
                return 404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Model Version not found"}'
            return (200, files[query["path"]]) if query["path"] in files else (404, b"Not Found")
        return 404, b"Not Found"


def serve_registry(port: int = 0) -> tuple[Registry, ThreadingHTTPServer]:
    """A registry that listens; the caller shuts the server down."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, body = served.answer(parts.path, query)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    served = Registry(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return served, server


@pytest.fixture
def registry() -> Iterator[Registry]:
    """An empty registry, listening."""
    registry, server = serve_registry()
    yield registry
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def foreign_page() -> Iterator[int]:
    """The port of another site, whose pages are blank; what they do is the script that a test runs in them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>another site</title><body>")

        def log_message(self, format: str, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A real PostgreSQL server for the whole session; a test that stops it starts it again."""
    from postgres import programs, running  # which needs what stands above

    bin = programs()
    if bin is None:
        pytest.skip("PostgreSQL's server is not installed")
    with running(bin) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty digits database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/digits.db"
    url: str = request.getfixturevalue("postgres").new_database()
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """That database, with its tables."""
    engine = database.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that speaks S3, from memory."""
    port, output = find_free_port(), tmp_path_factory.mktemp("s3") / "server.log"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with output.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/moto-api/", server, output)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server with an empty bucket `digits`, and the environment that others find it by."""
    import boto3

    from digits.data import bucket

    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    httpx.post(f"{s3_server}/moto-api/reset").raise_for_status()
    bucket._client.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="digits")
    yield client
    bucket._client.cache_clear()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server with an empty SQLite store, for the whole session."""
    home, port = tmp_path_factory.mktemp("mlflow"), find_free_port()
    with running_mlflow(home, port):
        yield f"http://127.0.0.1:{port}"


def migrated_database(library: str) -> Path:
    """An empty SQLite database of MLflow or Prefect with the tables of the installed version.

    Their migrations take seconds of processor time. Both processes of a session share the file; the first one makes it.
    """
    path = MIGRATED / f"{library}-{version(library)}.db"
    MIGRATED.mkdir(parents=True, exist_ok=True)
    with (MIGRATED / f"{library}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with files.replacing(path) as part:
                _migrate(library, f"sqlite:///{part}")
    return path


def _migrate(library: str, url: str) -> None:
    from ops.process_environment import ENVIRONMENT

    store = (
        "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore; SqlAlchemyStore(*sys.argv[1:])"
    )
    arguments = {
        # with the place of artifacts that a server started with --artifacts-destination gives its first experiment
        "mlflow": ["-c", store, url, "mlflow-artifacts:/"],
        "prefect": ["-m", "prefect", "server", "database", "upgrade", "-y"],
    }[library]
    prefect_url = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url.replace("sqlite", "sqlite+aiosqlite")}
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**outside, **ENVIRONMENT, **prefect_url, "PREFECT_HOME": str(MIGRATED / "home")}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


def put_migrated_database(library: str, folder: Path) -> None:
    """Copy the migrated database to where the server with this folder keeps its own, unless it has one."""
    path = folder / f"{library}.db"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(migrated_database(library), path)


def put_migrated_databases(home: Path) -> None:
    """Copy both migrated databases to where `digits up` with this DIGITS_HOME looks for them."""
    for library in ("mlflow", "prefect"):
        put_migrated_database(library, home / library)


@contextmanager
def running_mlflow(home: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """An MLflow server with its store in `home`, healthy."""
    put_migrated_database("mlflow", home)
    command = [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts")),
    ]
    with _running(command, home, f"http://127.0.0.1:{port}/health") as server:
        yield server


@contextmanager
def running_prefect(home: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A Prefect server with all its services, healthy."""
    put_migrated_database("prefect", home)
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    api = f"http://127.0.0.1:{port}/api"
    # Its pages would ask the server of PREFECT_API_URL, by default on port 4200.
    with _running(command, home, f"{api}/health", PREFECT_SERVER_UI_API_URL=api) as server:
        yield server


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the API of a real Prefect server with an empty store, which the flows that a test calls use."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    home, port = tmp_path_factory.mktemp("prefect"), find_free_port()
    api = f"http://127.0.0.1:{port}/api"
    with running_prefect(home, port), temporary_settings({PREFECT_API_URL: api}):
        yield api
        # Prefect keeps one worker for events per process, which would go on sending those of later tests to this server.
        EventsWorker.drain_all()


@contextmanager
def _running(command: list[str], home: Path, health: str, **variables: str) -> "Iterator[subprocess.Popen[bytes]]":
    from ops.process_environment import ENVIRONMENT

    outside = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**outside, **ENVIRONMENT, "PREFECT_HOME": str(home), **variables}
    with (home / "server.log").open("ab") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, cwd=home, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_until_healthy(health, server, home / "server.log")
            yield server
        finally:
            server.terminate()
            server.wait(30)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def wait_until_healthy(url: str, server: "subprocess.Popen[bytes]", output: Path) -> None:
    deadline = time.monotonic() + 180  # the slowest start seen on two busy cores was 87 s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"{url} does not answer: {output.read_text()[-2000:]}")


@dataclass(frozen=True)
class Runs:
    """Three trainings on a real MLflow server, with the folders that a DIGITS_HOME holds."""

    uri: str
    home: Path
    first: str  # version
    other_seed: str
    other_label: str  # trained with one label changed: training image 17

    @property
    def datasets(self) -> Path:
        return self.home / "datasets"

    @property
    def champions(self) -> Path:
        return self.home / "champions"


@pytest.fixture(scope="session")
def trained_runs(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Logistic regressions on the bundled digits, two epochs each, registered as the flow registers them."""
    from dataclasses import replace

    from digits.data import sources
    from digits.images import Split
    from models.recipes import SIGMOID

    home = tmp_path_factory.mktemp("home")
    quick = SIGMOID.model_copy(update={"epochs": 2})
    bundled = sources.read("bundled", mnist=None, cache=home)
    labels = bundled.train.labels.copy()
    labels[17] = (labels[17] + 1) % 10
    relabelled = replace(bundled, train=Split(bundled.train.images, labels))
    trainings = [(quick, bundled), (quick.model_copy(update={"seed": 1}), bundled), (quick, relabelled)]
    versions = [train_run(mlflow_server, home / "datasets", *training) for training in trainings]
    return Runs(mlflow_server, home, *versions)


def train_run(uri: str, folder: Path, recipe: Any, dataset: Any) -> str:
    """The version that `digits train` would register, without Prefect."""
    from digits.data import datasets
    from models import candidates
    from models.registry import RegistryWriter

    datasets.save(dataset, folder)
    return candidates.train(RegistryWriter(uri), folder, dataset, recipe)


@pytest.fixture(scope="session")
def sample(champion_files: Files) -> Reference:
    """The champion's held-out digits with its answers."""
    return from_bytes(champion_files["reference.npz"])


@pytest.fixture(scope="session")
def service(champion_files: Files, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Service]":
    """One service with a champion for all tests that leave it as it is."""
    from serving import serving  # which needs what stands above

    from digits.storage import ledger
    from models import model_store

    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    home = tmp_path_factory.mktemp("service")
    engine = database.connect(f"sqlite:///{home}/digits.db")
    ledger.append(
        engine, "promotion", None, "1", "the first", {}, digest=model_store.digest(champion_files["card.json"])
    )
    engine.dispose()
    with serving(home, registry, DIGITS_BODY_LIMIT_BYTES="3000000") as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        yield service
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> "Dataset":
    """scikit-learn's digits as a data set."""
    from digit_data import read

    return read("bundled", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def few(bundled: "Dataset") -> "Split":
    """Two hundred real digits, twenty of each, sorted by digit."""
    from digits.images import Split

    rows = np.concatenate([np.flatnonzero(bundled.train.labels == digit)[:20] for digit in range(10)])
    return Split(bundled.train.images[rows], bundled.train.labels[rows])
