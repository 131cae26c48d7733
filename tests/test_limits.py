"""Limits at their edges: what a setting allows is taken, one more is refused with a sentence."""

import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Files, serve_registry
from PIL import Image
from serving import Service, classify, serving

from digits.reference import Reference
from digits.settings import Settings
from digits.storage import database, predictions
from digits.storage.predictions import PredictionBatch, new_ids
from services.prediction_log import PredictionLog

BODY, PIXELS, BATCH, SECONDS, AT_ONCE = 40_000, 10_000, 3, 3, 4

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def tight(champion_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    settings = {
        "DIGITS_BODY_LIMIT_BYTES": str(BODY),
        "DIGITS_PICTURE_LIMIT_PIXELS": str(PIXELS),
        "DIGITS_BATCH_LIMIT": str(BATCH),
        "DIGITS_BODY_TIMEOUT_SECONDS": str(SECONDS),
        "DIGITS_CONCURRENCY_LIMIT": str(AT_ONCE),
    }
    with serving(tmp_path_factory.mktemp("tight"), registry, **settings) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        yield service
    server.shutdown()
    server.server_close()


def sentence(response: httpx.Response) -> str:
    words: str = response.json()["error"]
    return words


@slow
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_so_many_bytes(announced: bool, tight: Service) -> None:
    image = np.zeros((28, 28), np.uint8)
    image[8:20, 13:15] = 255
    for size, status in ((BODY, 200), (BODY + 1, 413)):
        body = b'{"images": %s}' % str(image.tolist()).encode()
        body += b" " * (size - len(body))
        content = body if announced else (body[start : start + 1000] for start in range(0, len(body), 1000))
        response = tight.client.post("/classify", content=content)
        assert response.status_code == status, response.text
    assert sentence(response) == f"the body has {BODY + 1:,} bytes or more; send at most {BODY:,}"


@slow
def test_a_picture_of_so_many_pixels(tight: Service, sample: Reference) -> None:
    for width, status in ((100, 200), (101, 422)):
        buffer = io.BytesIO()
        Image.fromarray(sample.images[1]).resize((width, 100)).save(buffer, "PNG")
        response = tight.client.post("/classify_file", content=buffer.getvalue())
        assert response.status_code == status, response.text
    assert sentence(response) == "the picture has 101 x 100 pixels; send one of at most 10,000"


@slow
def test_a_list_of_so_many_images(tight: Service, sample: Reference) -> None:
    for count, status in ((BATCH, 200), (BATCH + 1, 422)):
        response = tight.client.post("/classify", json={"images": sample.images[:count].tolist()})
        assert response.status_code == status
    assert "holds 4 images; expected at most 3" in sentence(response)
    assert (
        tight.client.get("/openapi.json").json()["paths"]["/classify"]["post"]["requestBody"]["content"][
            "application/json"
        ]["schema"]["properties"]["images"]["oneOf"][1]["maxItems"]
        == BATCH
    )


def begin(service: Service, path: str = "/classify_bulk") -> socket.socket:
    """A request whose body is announced and not sent."""
    url = service.client.base_url
    connection = socket.create_connection((url.host, url.port or 80), timeout=60)
    connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 784\r\n\r\n" % path.encode())
    return connection


def answer(connection: socket.socket) -> str:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
        if b"}" in part:
            break
    connection.close()
    return b"".join(parts).decode()


@slow
@pytest.mark.parametrize("path", ["/classify", "/classify_file", "/classify_bulk", "/feedback"])
def test_a_body_that_takes_longer_is_given_up_and_one_that_does_not_is_answered(path: str, tight: Service) -> None:
    began = time.monotonic()
    connection = begin(tight, path)
    head = b"Content-Type: application/json\r\n"
    if path == "/feedback":
        connection.close()
        url = tight.client.base_url
        connection = socket.create_connection((url.host, url.port or 80), timeout=60)
        connection.sendall(b"POST /feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 784\r\n" + head + b"\r\n")
    said = answer(connection)
    assert said.startswith("HTTP/1.1 408") and "the body did not arrive within 3 s" in said
    assert SECONDS - 0.1 < time.monotonic() - began < 30


@slow
def test_a_body_that_trickles_in_is_given_up_too(tight: Service) -> None:
    connection = begin(tight)
    began = time.monotonic()
    with connection:
        while time.monotonic() - began < 30:
            try:
                connection.sendall(b"0")
            except OSError:
                break  # it was closed
            time.sleep(0.1)
    assert time.monotonic() - began < 20


@slow
def test_a_body_within_the_time_is_answered(tight: Service) -> None:
    connection = begin(tight)
    time.sleep(0.5)
    connection.sendall(b"\x00" * 784)
    assert answer(connection).startswith("HTTP/1.1 200")


@slow
def test_so_many_requests_at_once(tight: Service, sample: Reference) -> None:
    """A request counts while it is answered; of small pictures, two are decoded at a time."""
    buffer = io.BytesIO()
    Image.fromarray(sample.images[1]).resize((100, 100)).save(buffer, "JPEG")
    with ThreadPoolExecutor(8 * AT_ONCE) as pool:
        sent = [
            pool.submit(tight.client.post, "/classify_file", content=buffer.getvalue()) for _ in range(50 * AT_ONCE)
        ]
        for path in ("/livez", "/metrics", "/", "/openapi.json"):  # which are not limited
            assert tight.status(path) == 200
        responses = [future.result() for future in sent]
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < len(sent)
    assert {(one.status_code, one.headers["Retry-After"]) for one in refused} == {(503, "1")}
    assert {sentence(one) for one in refused} == {"the service has 4 requests under way; ask again in a second"}
    assert 'route="/classify_file",status="503"' in tight.client.get("/metrics").text
    classify(tight, sample.images[0])


@slow
def test_a_quarter_of_them_may_wait_for_the_log(tight: Service, sample: Reference) -> None:
    """Feedback on an id of the last minute that nobody knows takes half a second."""
    label = {"id": new_ids()[0], "digit": 3}
    tight.wait_for(lambda: tight.client.post("/feedback", json=label).status_code == 404)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = [pool.submit(tight.client.post, "/feedback", json=label) for _ in range(AT_ONCE)]
        for _ in range(5):
            classify(tight, sample.images[0])
        responses = [future.result() for future in sent]
    assert sorted(one.status_code for one in responses) == [404, 503, 503, 503]
    refused = next(one for one in responses if one.status_code == 503)
    assert "requests for logged predictions" in sentence(refused) and refused.headers["Retry-After"] == "1"


@slow
def test_bodies_that_are_under_way_do_not_count_towards_the_limit(tight: Service, sample: Reference) -> None:
    before = left(tight)
    connections = [begin(tight) for _ in range(10 * AT_ONCE)]
    # until the service has begun with all of them: a connection that closes earlier is no request
    time.sleep(0.5)
    for _ in range(10):
        assert classify(tight, sample.images[0])["model_version"] == "1"
    for connection in connections:
        connection.close()
    # none of them is given up for taking too long, which would be a 408
    tight.wait_for(lambda: left(tight) >= before + len(connections))


def left(service: Service) -> float:
    """How many have left before their answer."""
    lines = service.client.get("/metrics").text.splitlines()
    counts = [line for line in lines if 'route="/classify_bulk",status="499"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counts)


@slow
def test_a_head_of_a_megabyte_is_refused(tight: Service) -> None:
    url = tight.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: " + b"x" * 1_000_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431")


@slow
@pytest.mark.parametrize(
    ("request_line", "count"),
    [("GET /static_content/swagger-ui-bundle.js", 40), ("GET /docs", 40), ("POST /classify_bulk", AT_ONCE - 1)],
)
def test_clients_that_never_read_hold_nobody_up(
    request_line: str, count: int, tight: Service, sample: Reference
) -> None:
    url, length = tight.client.base_url, 39_200 if "bulk" in request_line else 0
    head = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
    connections = [socket.create_connection((url.host, url.port or 80), timeout=60) for _ in range(count)]
    for connection in connections:
        connection.sendall((head + bytes(length)) * 20)
    body = {"images": sample.images[0].tolist()}
    responses: list[httpx.Response] = []

    def are_answered() -> bool:
        responses[:] = [tight.client.post("/classify", json=body) for _ in range(20)]
        return all(response.is_success for response in responses)

    # the first requests meet the burst itself, which reaches the limit for as long as it lasts
    tight.wait_for(are_answered, seconds=30)
    assert [response.json()["model_version"] for response in responses] == ["1"] * 20
    for connection in connections:
        connection.close()


# The log


def answers(count: int) -> PredictionBatch:
    images = np.zeros((count, 28, 28), np.uint8)
    return PredictionBatch(
        new_ids(count), datetime.now(UTC), "1", images, np.full((count, 10), 0.1, np.float32), "/classify"
    )


def test_so_many_answers_wait_for_the_next_write(tmp_path: Path) -> None:
    log = PredictionLog(f"sqlite:///{tmp_path}/digits.db", tmp_path / "spool", limit=10, interval_seconds=60)
    for _ in range(10):
        assert log.append(answers(1))
    assert (log.depth, log.lost) == (10, 0)
    assert not log.append(answers(1))
    assert (log.depth, log.lost) == (10, 1)
    log.close()


def test_where_nothing_can_be_written_nothing_is_logged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # nothing can be written below a file
    log = PredictionLog(f"sqlite:///{tmp_path}/file/digits.db", tmp_path / "file" / "spool")
    assert not log.append(answers(2))
    assert (log.depth, log.lost) == (0, 2)
    log.close()


def test_answers_are_kept_so_long(tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    edge = datetime.now(UTC) - timedelta(days=Settings(_env_file=None).retention_days)  # type: ignore[call-arg]
    old, kept = answers(1)._replace(at=edge - timedelta(seconds=1)), answers(1)._replace(at=edge)
    predictions.append(engine, [old, kept], audit_sample_rate=0)
    assert predictions.delete_before(engine, edge) == 1
    assert predictions.read_window(engine, edge - timedelta(days=1)).ids == kept.ids
