"""The head and the body of an answer leave in one write, and nothing that is no answer's body is waited for."""

import asyncio
import json
import socket
from collections.abc import Callable

import pytest
from serving import Service

from digits.reference import Reference
from services.wire import HoldingHeads

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Transport:
    """What was written, one entry for each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close


def written(act: Callable[[HoldingHeads], None]) -> tuple[list[bytes], Transport]:
    """What had left when `act` was done, and the transport a turn of the loop later."""

    async def run() -> tuple[list[bytes], Transport]:
        transport = Transport()
        act(HoldingHeads(transport))  # type: ignore[arg-type]
        at_once = list(transport.writes)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return at_once, transport

    return asyncio.run(run())


def test_a_head_leaves_with_its_body() -> None:
    def act(held: HoldingHeads) -> None:
        for _ in range(2):
            held.write(HEAD)
            held.write(b"four")

    at_once, transport = written(act)
    assert at_once == [HEAD + b"four"] * 2 == transport.writes


def test_a_head_without_a_body_leaves_by_itself() -> None:
    at_once, transport = written(lambda held: held.write(HEAD))
    assert at_once == [] and transport.writes == [HEAD]


def test_the_parts_of_a_body_leave_as_they_come() -> None:
    def act(held: HoldingHeads) -> None:
        for part in (HEAD, b"fo", b"ur"):
            held.write(part)

    at_once, _ = written(act)
    assert at_once == [HEAD + b"fo", b"ur"]


def test_closing_sends_what_was_held_first() -> None:
    def act(held: HoldingHeads) -> None:
        held.write(HEAD)
        held.close()

    at_once, transport = written(act)
    assert at_once == [HEAD] == transport.writes and transport.is_closed


def test_nothing_is_written_to_a_client_that_has_left() -> None:
    def act(held: HoldingHeads) -> None:
        held.write(HEAD)
        held.abort()  # as when the connection was reset

    _, transport = written(act)
    assert transport.writes == []


@pytest.mark.slow
def test_the_service_s_answers_arrive_whole(service: Service, sample: Reference) -> None:
    body = json.dumps({"images": sample.images[0].tolist()}).encode()
    request = b"POST /classify HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    url = service.client.base_url
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        for _ in range(20):
            connection.sendall(request)
            head, _, answer = connection.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and json.loads(answer)["model_version"] == "1"
