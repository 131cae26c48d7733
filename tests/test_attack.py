"""The service under the attacks of `bench.attack`, for a few seconds each: honest clients are answered, and memory stays bounded."""

import io
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import psutil
import pytest
from conftest import Files, serve_registry
from PIL import Image
from serving import Service, png, serving

from bench import attack
from bench.faults import workers
from digits.reference import Reference
from services.__main__ import HEADER_TIMEOUT_SECONDS, RESERVED_FILE_DESCRIPTORS, allow_connections

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def running(files: Files, folder: Path) -> Iterator[Service]:
    registry, server = serve_registry()
    registry.versions["1"] = files
    registry.aliases["champion"] = "1"
    with serving(folder, registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        yield service
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(champion_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(champion_files, tmp_path_factory.mktemp("attacked")) as service:
        yield service


def address(service: Service) -> attack.Address:
    url = service.client.base_url
    return url.host, url.port or 80


@pytest.mark.parametrize("name", attack.ATTACKS)
def test_honest_clients_are_answered_during_an_attack(
    name: str, champion_files: Files, tmp_path: Path, sample: Reference
) -> None:
    # a service for each, because memory that was used stays with the process
    with running(champion_files, tmp_path) as service:
        process = psutil.Process(service.process.pid)
        figures = attack.measure(process, address(service), sample.images[0], 3, attack.ATTACKS[name])
    # a busy machine makes p99 useless here; `bench.attack` compares it
    assert figures.failed == [] and len(figures.latencies_ms) > 20
    assert figures.memory_mb < attack.MAX_MEMORY_MB


def large(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4_890, 4_890), "white").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/classify_file", "image/png", large("RGBA")),
        ("/classify_bulk", "application/octet-stream", bytes(15_999_999)),
        ("/classify", "application/json", orjson.dumps({"images": [[[1] * 28] * 28] * 870 + [[[256] * 28] * 28]})),
    ],
)
def test_a_refused_body_leaves_no_memory_in_use(path: str, content_type: str, body: bytes, service: Service) -> None:
    """A blank picture of 24 million pixels left 90 MB, until a garbage collection."""

    def memory_mb() -> float:
        return max(process.memory_info().rss for process in workers(psutil.Process(service.process.pid))) / 1e6

    for _ in range(2):
        assert attack.post(address(service), path, body, content_type).startswith("422")
    before = memory_mb()
    for _ in range(4):
        attack.post(address(service), path, body, content_type)
    assert memory_mb() - before < 100


def test_an_unread_response_is_not_read_from_disk_whole(service: Service) -> None:
    """By default, the kernel took 4 MB of the responses of each connection."""
    (worker,) = workers(psutil.Process(service.process.pid))
    request = b"GET /static_content/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    before = worker.io_counters().read_chars
    connections = [attack._connection(address(service)) for _ in range(20)]
    for connection in connections:
        connection.send(request * 10)
    time.sleep(2)
    read = worker.io_counters().read_chars - before
    for connection in connections:
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.close()
    assert read < 20 * 1_000_000


def send(service: Service, body: bytes) -> socket.socket:
    connection = socket.create_connection(address(service), 60)
    head = (
        f"POST /classify_file HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n"
    )
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
    return connection


def count(service: Service, status: int) -> float:
    lines = service.client.get("/metrics").text.splitlines()
    counts = [line for line in lines if f'route="/classify_file",status="{status}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counts)


def test_a_picture_whose_sender_has_left_is_not_decoded(service: Service) -> None:
    body = large()
    before = {status: count(service, status) for status in (422, 499)}
    stays = send(service, body)
    time.sleep(0.1)
    for _ in range(10):
        send(service, body).close()
    assert stays.recv(12) == b"HTTP/1.1 422"
    service.wait_for(lambda: count(service, 499) + count(service, 422) >= sum(before.values()) + 11)
    assert count(service, 422) - before[422] == 1


def test_a_drawing_does_not_wait_for_large_pictures(service: Service, sample: Reference) -> None:
    body = large("RGBA")
    connections = [send(service, body) for _ in range(6)]
    time.sleep(0.2)
    answered = service.client.post("/classify_file", content=png(sample.images[0]))
    assert answered.status_code == 200
    # all of these pictures are still being decoded or wait
    for connection in connections[2:]:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    for connection in connections:
        connection.close()


def test_a_connection_that_sends_nothing_or_half_a_head_is_closed(service: Service) -> None:
    connections = [socket.create_connection(address(service), 60) for _ in range(3)]
    connections[1].sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    connections[2].sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert connections[2].recv(65_536).startswith(b"HTTP/1.1 200")
    began = time.monotonic()
    for connection in connections:
        while connection.recv(65_536):
            pass
        connection.close()
    assert HEADER_TIMEOUT_SECONDS - 1 < time.monotonic() - began < HEADER_TIMEOUT_SECONDS + 20


def test_more_connections_than_allowed_wait_for_one_to_close(
    champion_files: Files, sample: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack, "TIMEOUT_SECONDS", HEADER_TIMEOUT_SECONDS / 3)
    body = orjson.dumps({"images": sample.images[0].tolist()})
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    with serving(tmp_path, registry, DIGITS_CONNECTION_LIMIT="4") as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        held = [socket.create_connection(address(service), 60) for _ in range(4)]
        assert attack.post(address(service), "/classify", body, "application/json") == "TimeoutError('timed out')"
        for connection in held:
            connection.close()
        assert attack.post(address(service), "/classify", body, "application/json") == ""
    server.shutdown()
    server.server_close()


def test_connections_are_limited_by_the_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    assert allow_connections(500) == 500 and limits == []
    assert allow_connections(2_000) == 2_000 and limits == [(2_000 + RESERVED_FILE_DESCRIPTORS, 4_096)]
    assert allow_connections(9_000) == 4_096 - RESERVED_FILE_DESCRIPTORS and limits[1:] == [(4_096, 4_096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert allow_connections(9_000) == 9_000
