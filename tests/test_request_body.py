"""Bodies: whole within time and size, held in limited memory, and refused before they are sent to those who ask first."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import Service
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from digits.settings import Settings
from services.request_body import MAX_LARGE_BODIES, BodyMemory, RequestBody

LIMIT = 200_000
SETTINGS = Settings(_env_file=None, body_limit_bytes=LIMIT)  # type: ignore[call-arg]


class Client:
    """Sends parts of a body when it is told to; `None` ends it, `""` leaves."""

    def __init__(self, memory: BodyMemory, seconds: float = 5, **headers: str) -> None:
        self.parts: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        self.body = RequestBody(self._receive, sent, memory, seconds)

    async def _receive(self) -> dict[str, Any]:
        part = await self.parts.get()
        if part == "":
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    def send(self, *parts: bytes | str | None) -> "Client":
        for part in parts:
            self.parts.put_nowait(part)
        return self

    async def read(self, limit: int = LIMIT) -> bytes:
        await self.body.read(limit)
        content: bytes = (await self.body.receive())["body"]
        return content


def run(test: Callable[[BodyMemory], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(BodyMemory(SETTINGS)), 20)

    asyncio.run(main())


async def status(reading: Awaitable[Any]) -> int:
    with pytest.raises(HTTPException) as caught:
        await reading
    return caught.value.status_code


def test_a_body_is_whole_whatever_its_parts() -> None:
    async def test(memory: BodyMemory) -> None:
        for parts in (
            [b"whole"],
            [b"wh", b"o", b"le"],
            [b"", b"whole"],
            [b"w" * 70_000] * 2,
            [b"01", b"2"] * 5_000,
            [b""],
        ):
            assert await Client(memory).send(*parts, None).read() == b"".join(parts)
        assert await Client(memory, content_length="5").send(b"who", b"le").read() == b"whole"

    run(test)


def test_one_that_is_too_large_late_or_left_is_refused() -> None:
    async def test(memory: BodyMemory) -> None:
        assert await status(Client(memory, content_length=str(LIMIT + 1)).read()) == 413
        assert await status(Client(memory).send(b"0" * LIMIT, b"0").read()) == 413
        assert await status(Client(memory, seconds=0.05).send(b"0").read()) == 408
        with pytest.raises(ClientDisconnect):
            await Client(memory).send(b"0", "").read()

    run(test)


def test_the_rest_of_a_refused_body_is_read_unless_its_client_asks_first_or_leaves() -> None:
    async def test(memory: BodyMemory) -> None:
        client = Client(memory, seconds=1).send(b"0", b"0", None)
        await client.body.drain()
        assert client.parts.empty()
        asking = Client(memory, seconds=1, expect="100-continue").send(b"0", None)
        await asking.body.drain()
        assert asking.parts.qsize() == 2
        leaving = Client(memory, seconds=1).send(b"0", "")
        await leaving.body.drain()
        assert leaving.parts.empty()
        began = time.monotonic()
        await Client(memory, seconds=0.1).send(b"0").body.drain()
        assert time.monotonic() - began < 5

    run(test)


def test_slow_bodies_are_given_up_where_others_need_the_memory() -> None:
    async def test(memory: BodyMemory) -> None:
        slow = [Client(memory).send(b"0" * 150_000) for _ in range(2 * MAX_LARGE_BODIES)]
        reading = [asyncio.create_task(client.read()) for client in slow]
        await asyncio.sleep(0.05)
        done = [task.done() for task in reading]
        # six of them fit into the memory of five bodies of 200 kB
        assert done == [True] * 4 + [False] * 6
        assert await Client(memory).send(b"1" * 120_000, b"1", None).read() == b"1" * 120_001
        assert [await status(task) for task in reading[:5]] == [503] * 5
        small = Client(memory).send(b"2" * 60_000, None)
        assert len(await small.read()) == 60_000
        for client in slow[5:]:
            client.send(None)
        assert [len(await task) for task in reading[6:]] == [150_000] * 4

    run(test)


def test_an_upload_on_a_slow_line_survives_large_bodies_that_come_and_go() -> None:
    async def test(memory: BodyMemory) -> None:
        slow = Client(memory).send(b"1" * 66_000)
        reading = asyncio.create_task(slow.read())
        await asyncio.sleep(0.2)
        large: list[asyncio.Task[int]] = []
        for _ in range(3):
            bodies = [Client(memory, seconds=0.5).send(b"0" * (LIMIT - 1)) for _ in range(MAX_LARGE_BODIES)]
            large += [asyncio.create_task(status(client.read())) for client in bodies]
            await asyncio.sleep(0.15)
            slow.send(b"1")
        slow.send(None)
        assert len(await reading) == 66_003
        assert set(await asyncio.gather(*large)) <= {408, 503}

    run(test)


def test_bodies_that_have_arrived_are_not_given_up_and_make_room_at_their_end() -> None:
    async def test(memory: BodyMemory) -> None:
        whole = [Client(memory).send(b"0" * LIMIT, None) for _ in range(MAX_LARGE_BODIES)]
        for client in whole:
            assert len(await client.read()) == LIMIT
        refused = Client(memory).send(b"1" * 70_000, b"1", None)
        assert await status(refused.read()) == 503
        refused.body.release()
        whole[0].body.release()
        assert len(await Client(memory).send(b"1" * 70_000, b"1", None).read()) == 70_001

    run(test)


# Over HTTP


def connect(service: Service, head: str) -> socket.socket:
    url = service.client.base_url
    connection = socket.create_connection((url.host, url.port or 80), timeout=60)
    connection.sendall(head.replace("\n", "\r\n").encode())
    return connection


def response(connection: socket.socket) -> str:
    with connection:
        received = b""
        while not received.endswith(b"}") and (part := connection.recv(65536)):
            received += part
    return received.decode()


def test_slow_bodies_do_not_count_towards_the_limit(service: Service) -> None:
    head = "POST /classify HTTP/1.1\nHost: localhost\nContent-Length: 2000\n\n{"
    slow = [connect(service, head) for _ in range(150)]
    time.sleep(0.5)
    body = {"images": [[0] * 28] * 28}
    assert [service.client.post("/classify", json=body).status_code for _ in range(20)] == [200] * 20
    for connection in slow:
        connection.close()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/classify_bulk", "Content-Length: 3000001\n", 413),
        ("/feedback", "Content-Length: 10001\nContent-Type: application/json\n", 413),
        ("/classify", "Content-Length: 5\nContent-Encoding: gzip\n", 415),
        ("/classify", "Content-Length: 5\nOrigin: https://evil.example\n", 403),
        ("/classify?preview=true", "Content-Length: 5\n", 422),
        ("/nothing", "Content-Length: 5\n", 404),
        ("/samples", "Content-Length: 5\n", 405),
    ],
)
def test_a_client_that_asks_first_is_refused_before_it_sends_its_body(
    path: str, headers: str, status: int, service: Service
) -> None:
    said = response(connect(service, f"POST {path} HTTP/1.1\nHost: localhost\nExpect: 100-continue\n{headers}\n"))
    assert said.startswith(f"HTTP/1.1 {status} ") and '{"error":' in said


def test_a_client_that_asks_first_gets_100_continue(service: Service) -> None:
    body = json.dumps({"images": [[0] * 28] * 28}).encode()
    head = f"POST /classify HTTP/1.1\nHost: localhost\nExpect: 100-continue\nContent-Length: {len(body)}\n\n"
    connection = connect(service, head)
    assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
    connection.sendall(body)
    assert response(connection).startswith("HTTP/1.1 200 OK")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "zstd"])
def test_a_compressed_body_is_refused(encoding: str, service: Service) -> None:
    for path in ("/classify", "/classify_bulk", "/classify_file", "/feedback"):
        refused = service.client.post(path, content=b"0" * 784, headers={"Content-Encoding": encoding})
        assert refused.status_code == 415 and "send the body uncompressed" in refused.json()["error"]
    plain = service.client.post("/classify_bulk", content=b"0" * 784, headers={"Content-Encoding": "Identity"})
    assert plain.status_code == 200
    head = "POST /classify HTTP/1.1\nHost: localhost\nTransfer-Encoding: gzip, chunked\n\n0\n\n"
    assert response(connect(service, head)).startswith("HTTP/1.1 415 ")


@pytest.mark.parametrize("zeros", [30, 5_000])
def test_a_length_may_begin_with_zeros(zeros: int, service: Service) -> None:
    said = response(
        connect(service, f"POST /classify HTTP/1.1\nHost: localhost\nContent-Length: {'0' * zeros}2\n\n{{}}")
    )
    assert said.startswith("HTTP/1.1 422 ") and "images" in said


def test_a_body_of_empty_lists_takes_no_memory(service: Service) -> None:
    """16 MB of `[],` took 643 MB: every list takes thirty times its two bytes."""
    processes = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(recursive=True)]

    def peak() -> int:
        states = (Path(f"/proc/{process.pid}/status").read_text() for process in processes)
        return sum(int(re.findall(r"VmHWM:\s*(\d+)", state)[0]) for state in states)

    for item in (b"[],", b"{},", b'{"a":0},', b"[0],"):
        body = b'{"images": [%s0]}' % (item * (2_900_000 // len(item)))
        service.client.post("/classify", content=body[:200_000])
        before, statuses = peak(), []

        def ask(body: bytes = body, statuses: list[int] = statuses) -> None:
            statuses.append(service.client.post("/classify", content=body).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {422} and peak() - before < 60_000, item
