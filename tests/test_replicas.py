"""Three replicas of the service behind nginx on one PostgreSQL: one answers for all, and none is missed."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from conftest import Files, Registry, find_free_port, get, serve_registry
from serving import ROOT, Service, classify, serving

from digits.reference import Reference
from digits.storage import database, predictions

if TYPE_CHECKING:
    from postgres import Postgres

NGINX = shutil.which("nginx")
WATCH_SECONDS = 2.0
SLACK_SECONDS = 8.0  # to fetch, verify and warm three times on a busy machine
COUNT = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.postgres,
    pytest.mark.timeout(400),
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


@dataclass
class Platform:
    """The replicas, what is in front of them and what is behind."""

    replicas: list[Service]
    registry: Registry
    url: str  # of the database
    client: httpx.Client  # of nginx
    restart: Callable[[Path], Any]  # a replica in this home, on another port
    answered: set[str] = field(default_factory=set)  # ids that a client was given

    def ask(self, image: Any) -> dict[str, Any]:
        response = self.client.post("/classify", json={"images": image.tolist()})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        self.answered.add(answer["id"])
        return answer

    def logged(self) -> predictions.PredictionWindow:
        engine = database.connect(self.url)
        try:
            return predictions.read_window(engine, datetime.now(UTC) - timedelta(hours=1))
        finally:
            engine.dispose()

    def wait_until_logged(self, asked_again: int = 0) -> predictions.PredictionWindow:
        """Everything that was answered, each once, and of what was asked again what a second replica may have answered."""
        deadline = time.monotonic() + 60
        while not self.answered <= set((window := self.logged()).ids):
            missing = self.answered - set(window.ids)
            assert time.monotonic() < deadline, f"{len(missing)} of {len(self.answered)} answers are not in the log"
            time.sleep(0.1)
        assert len(window) == len(set(window.ids)) <= len(self.answered) + asked_again
        return window


@pytest.fixture(scope="module")
def platform(
    postgres: "Postgres", champion_files: Files, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    url, homes = postgres.new_database(), [tmp_path_factory.mktemp("replica") for _ in range(COUNT)]
    settings = {"DIGITS_DATABASE_URL": url, "DIGITS_REGISTRY_POLL_SECONDS": str(WATCH_SECONDS)}

    def start(home: Path) -> Any:
        return serving(home, registry, **settings)

    with ExitStack() as stack, ThreadPoolExecutor(COUNT) as pool:
        # at once, on an empty database: one of them makes the tables
        replicas = list(pool.map(stack.enter_context, map(start, homes)))
        for replica in replicas:
            replica.wait_for(lambda replica=replica: replica.status("/readyz") == 200, seconds=60)
        address = stack.enter_context(nginx([replica.client.base_url.port or 0 for replica in replicas]))
        client = stack.enter_context(httpx.Client(base_url=address, timeout=30))
        yield Platform(replicas, registry, url, client, start)
    server.shutdown()
    server.server_close()


@contextmanager
def nginx(ports: list[int]) -> Iterator[str]:
    """nginx as docker/nginx.conf sets it up, in front of these ports."""
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="digits-nginx-") as folder:  # pytest's own are closed to nginx's workers
        Path(folder).chmod(0o755)
        servers = "\n".join(f"server 127.0.0.1:{one} max_fails=0;" for one in ports)
        text = (ROOT / "docker" / "nginx.conf").read_text()
        for given, wanted in (
            ("server service:3000 max_fails=0;", servers),
            ("listen 8080;", f"listen 127.0.0.1:{port};"),
            (" /tmp/", f" {folder}/"),
        ):
            assert given in text
            text = text.replace(given, wanted)
        path = Path(folder, "nginx.conf")
        path.write_text(text)
        process = subprocess.Popen([str(NGINX), "-c", str(path), "-p", folder, "-g", "daemon off;"])
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while not _answers(f"{address}/livez"):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        return get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def answers_of(replica: Service) -> float:
    """How many images it has answered, by its own metrics, which workers share once a second."""
    lines = replica.client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("digits_answers_total"))


def test_every_replica_answers_and_nothing_is_logged_twice(platform: Platform, sample: Reference) -> None:
    images = sample.images[:90]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(platform.ask, images))
    assert [answer["digit"] for answer in answers] == sample.probabilities[:90].argmax(1).tolist()
    assert len({answer["id"] for answer in answers}) == 90
    window = platform.wait_until_logged()
    assert len(window) == len(platform.answered) == 90
    deadline = time.monotonic() + 30
    while sum(counts := [answers_of(replica) for replica in platform.replicas]) < 90:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert sum(counts) == 90 and min(counts) > 0


def test_feedback_to_any_replica_lands(platform: Platform, sample: Reference) -> None:
    first, *others = platform.replicas
    answer = classify(first, sample.images[0])
    platform.answered.add(answer["id"])
    labels = {}
    for replica, digit in zip(others, (3, 8), strict=True):  # at once, before the first may have written it
        response = replica.client.post("/feedback", json={"id": answer["id"], "digit": digit})
        assert response.status_code == 200, response.text
        labels[answer["id"]] = digit
    for image, label in zip(sample.images[:12], sample.labels, strict=False):
        id = platform.ask(image)["id"]
        response = platform.client.post("/feedback", json={"id": id, "digit": int(label)})
        assert response.status_code == 200, response.text
        labels[id] = int(label)
    window = platform.wait_until_logged()
    found = dict(zip(window.ids, window.labels.tolist(), strict=True))
    assert {id: found[id] for id in labels} == labels


def test_a_promotion_reaches_all_within_the_watch_interval(platform: Platform, other_files: Files) -> None:
    platform.registry.versions["2"] = other_files
    promoted = datetime.now(UTC)
    platform.registry.aliases["champion"] = "2"
    deadline = time.monotonic() + 60
    while {replica.version() for replica in platform.replicas} != {"2"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    since = [datetime.fromisoformat(replica.client.get("/about").json()["since"]) for replica in platform.replicas]
    assert max(since) - promoted < timedelta(seconds=WATCH_SECONDS + SLACK_SECONDS)
    assert {platform.client.get("/about").json()["model_version"] for _ in range(6)} == {"2"}


def test_while_postgresql_is_away_all_go_on_and_it_gets_every_answer_once(
    platform: Platform, postgres: "Postgres", sample: Reference
) -> None:
    id = platform.ask(sample.images[0])["id"]
    platform.wait_until_logged()
    postgres.stop()
    try:
        for image in sample.images[:30]:
            platform.ask(image)
        response = platform.client.post("/feedback", json={"id": id, "digit": 1})
        assert response.status_code == 503 and "send this again later" in response.text
    finally:
        postgres.start()
    platform.wait_until_logged()
    response = platform.client.post("/feedback", json={"id": id, "digit": 1})
    assert response.status_code == 200, response.text


def test_a_replica_that_is_killed_under_load_costs_what_was_in_flight_and_no_logged_prediction(
    platform: Platform, sample: Reference
) -> None:
    """What it had answered and not yet written, it writes when it restarts."""
    victim, clients = platform.replicas[0], 4
    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(platform.ask, image) for image in sample.images[:400]]
        while sum(one.done() for one in asking) < 100:
            time.sleep(0.01)
        for process in [*psutil.Process(victim.process.pid).children(recursive=True), victim.process]:
            process.kill()
        assert not asking[-1].done()
        # half a response cannot be retried by nginx
        broken = [error for one in asking if (error := one.exception())]
        assert len(broken) <= clients, broken
    victim.process.wait(30)
    with platform.restart(victim.home) as again:
        again.wait_for(lambda: again.status("/readyz") == 200, seconds=60)
        platform.wait_until_logged(asked_again=clients)
