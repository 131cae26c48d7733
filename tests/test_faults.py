"""A service under load whose worker is killed, whose database is locked and whose disk is full: no answer with an id is lost."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Files, serve_registry
from serving import Service, serving

from bench import faults
from bench.faults import CLIENTS, Load
from digits.reference import Reference

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]
DISK_BYTES = 40_000_000
IDLE = {"waiting": 0, "sealed_segments": 0, "damaged_segments": 0, "lost": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bool]]:
    """A folder, and whether it is a small disk of its own."""
    folder = tmp_path_factory.mktemp("faults")
    with faults.small_disk(folder, DISK_BYTES) as is_small:
        yield folder, is_small


@pytest.fixture(scope="module")
def service(home: tuple[Path, bool], champion_files: Files) -> Iterator[Service]:
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    with serving(home[0], registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        yield service
    server.shutdown()
    server.server_close()


def test_a_killed_worker_is_replaced_and_loses_no_logged_prediction(service: Service, sample: Reference) -> None:
    with Load(str(service.client.base_url), sample.images) as load:
        wait_for_answers(load, 30)
        faults.kill(faults.workers(psutil.Process(service.process.pid)))
        killed = time.monotonic()
        service.wait_for(lambda: service.status("/readyz") == 200)
        assert time.monotonic() - killed < 10
        failed = len(load.failed)
        wait_for_answers(load, len(load.ids) + 100)
    assert len(load.failed) <= failed + CLIENTS, load.failed
    assert load.lost() == []


def test_with_two_workers_a_killed_one_costs_what_was_in_flight(
    champion_files: Files, sample: Reference, tmp_path: Path
) -> None:
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    with serving(tmp_path, registry, DIGITS_SERVICE_WORKERS="2") as service:
        master = psutil.Process(service.process.pid)
        log = tmp_path / "service.log"
        service.wait_for(lambda: log.read_text().count("Started worker") == 2)
        with Load(str(service.client.base_url), sample.images) as load:
            wait_for_answers(load, 30)
            faults.kill(faults.workers(master)[:1])
            wait_for_answers(load, len(load.ids) + 100)
        service.wait_for(lambda: log.read_text().count("Started worker") == 3)
        assert len(load.failed) <= CLIENTS, load.failed
        assert load.lost() == []
        gauges = {path.stem.rpartition("_")[2] for path in (tmp_path / "metrics").glob("gauge_live*")}
        assert gauges == {str(worker.pid) for worker in faults.workers(master)}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["database locked", "disk full"])
def test_answers_go_on_and_none_is_lost(
    service: Service, sample: Reference, home: tuple[Path, bool], fault: str
) -> None:
    folder, is_small = home
    if fault == "disk full" and not is_small:
        pytest.skip("only root can mount a small disk, and only on Linux")
    wrong = faults.full(folder) if fault == "disk full" else faults.locked(f"sqlite:///{folder}/digits.db")
    with Load(str(service.client.base_url), sample.images) as load:
        wait_for_answers(load, 30)
        with wrong:
            wait_for_answers(load, len(load.ids) + 200)
            time.sleep(3)  # longer than the log waits for a lock
        wait_for_answers(load, len(load.ids) + 30)
    assert load.failed == []
    service.wait_for(lambda: log_of(service) == IDLE, 60)
    assert load.lost() == []


def test_a_worker_that_is_killed_while_the_disk_is_full_loses_no_logged_prediction(
    service: Service, sample: Reference, home: tuple[Path, bool]
) -> None:
    """An answer has an id only if it is on the disk: what waited in memory would be lost."""
    folder, is_small = home
    if not is_small:
        pytest.skip("only root can mount a small disk, and only on Linux")
    with Load(str(service.client.base_url), sample.images) as load:
        wait_for_answers(load, 30)
        with faults.full(folder):
            wait_for_answers(load, len(load.ids) + 200)
            faults.kill(faults.workers(psutil.Process(service.process.pid)))
            service.wait_for(lambda: service.status("/readyz") == 200)
            wait_for_answers(load, len(load.ids) + 100)
        wait_for_answers(load, len(load.ids) + 30)
    service.wait_for(lambda: log_of(service) == {**IDLE, "lost": load.ids.count(None)}, 60)
    load.ids[:] = [id for id in load.ids if id]
    assert len(load.ids) > 300 and load.lost() == []


def log_of(service: Service) -> object:
    return service.client.get("/about").json()["log"]


def wait_for_answers(load: Load, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(load.ids) < count:
        assert time.monotonic() < deadline, load.failed[-3:]
        time.sleep(0.05)
