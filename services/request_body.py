"""Reads a request body before the request counts towards the concurrency limit, so that slow bodies delay nobody else.

A worker holds a limited number of bytes of bodies at a time. Where they would become more, the arriving body with the most bytes × seconds
is given up: that of an attacker is large and fast or small and slow, an honest one seldom large and slow.
"""

import asyncio
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from digits.settings import Settings
from services.hosts import Headers

# Bodies up to this size are not counted: the number of connections bounds them.
SMALL_BYTES = 65_536
# Parts of a body up to this size are joined with the next one.
MIN_PART_BYTES = 4_096
# So many bodies of the maximum size are held at a time.
MAX_LARGE_BODIES = 5
# Added to the time that a body has been arriving for: of those that have just begun, the largest is given up.
SETTLING_SECONDS = 1.0
# A client reads the response only after it has sent its body; this much of a refused body is read and dropped.
MAX_DRAINED_BYTES = 256_000_000
# Sentence and headers of the 503 for a body without memory.
_NO_ROOM = (
    "the bodies of other requests fill the memory for them; send this one again in a second",
    {"Retry-After": "1"},
)


class BodyMemory:
    """The bytes of all bodies above SMALL_BYTES that a worker holds."""

    def __init__(self, settings: Settings) -> None:
        self._limit_bytes, self._held_bytes = MAX_LARGE_BODIES * settings.body_limit_bytes, 0
        self._arriving: dict[RequestBody, asyncio.Timeout] = {}

    def hold(self, body: "RequestBody", size_bytes: int, timeout: asyncio.Timeout) -> None:
        """Count `size_bytes` more; raises HTTPException 503 where bodies that have arrived leave no room, or the others take less of it."""
        self._arriving[body] = timeout
        self._held_bytes += size_bytes
        while self._held_bytes > self._limit_bytes:
            now = asyncio.get_running_loop().time()
            worst = max(
                self._arriving, key=lambda arriving: arriving.held_bytes * (now - arriving.began + SETTLING_SECONDS)
            )
            if worst is body:
                raise HTTPException(503, *_NO_ROOM)
            self._arriving.pop(worst).reschedule(now)
            worst.give_up()

    def arrived(self, body: "RequestBody") -> None:
        """The body is complete, or refused: it is not given up any more."""
        self._arriving.pop(body, None)

    def release(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes


class RequestBody:
    """The body of one request, from its first byte to the end of the request."""

    def __init__(self, receive: Receive, headers: Headers, memory: BodyMemory, timeout_seconds: float) -> None:
        self._receive, self._memory, self._seconds = receive, memory, timeout_seconds
        self.began = asyncio.get_running_loop().time()
        self._deadline = self.began + timeout_seconds
        # without the zeros, of which Python's int accepts 4,300
        announced = headers.get(b"content-length", b"").lstrip(b"0")
        self._announced = int(announced) if announced.isdigit() else 0
        # such a client sends the body only when it is asked for it
        self._is_expected = b"expect" in headers
        self._received = self.held_bytes = 0
        self._is_begun = self._is_complete = self._is_given_up = False
        # what has arrived, and then the whole body for a route that asks for it as ASGI does
        self._parts: list[bytes] = []
        self._content: bytes | None = None

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body; raises HTTPException 413 above the limit, 408 if it is late, 503 without memory, or ClientDisconnect."""
        self._check_size(limit_bytes)
        try:
            async with asyncio.timeout_at(self._deadline) as timeout:
                content = await self._next()
                if not self._is_complete:
                    content = await self._rest(content, limit_bytes, timeout)
        except TimeoutError:
            if self._is_given_up:
                raise HTTPException(503, *_NO_ROOM) from None
            sentence = f"the body did not arrive within {self._seconds:g} s; send it faster, or less at a time"
            raise HTTPException(408, sentence, {"Connection": "close"}) from None
        finally:
            self._memory.arrived(self)
        self._check_size(limit_bytes)
        self._content = content
        return content

    async def _rest(self, begin: bytes, limit_bytes: int, timeout: asyncio.Timeout) -> bytes:
        self._keep(begin)
        while not self._is_complete:
            self._check_size(limit_bytes)
            if self._received > SMALL_BYTES:
                added, self.held_bytes = self._received - self.held_bytes, self._received
                self._memory.hold(self, added, timeout)
            self._keep(await self._next())
        content, self._parts = b"".join(self._parts), []
        return content

    def _keep(self, part: bytes) -> None:
        """Add a part; small ones are joined, because each takes 41 bytes more than it holds, and large ones are not, because copying is slow."""
        if self._parts and len(self._parts[-1]) < MIN_PART_BYTES:
            part = self._parts.pop() + part
        self._parts.append(part)

    def _check_size(self, limit_bytes: int) -> None:
        if (size := max(self._announced, self._received)) > limit_bytes:
            sentence = f"the body has {size:,} bytes or more; send at most {limit_bytes:,}"
            raise HTTPException(413, sentence, {"Connection": "close"})

    async def _next(self) -> bytes:
        self._is_begun = True
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        self._received += len(part)
        # Granian says that a body is complete in an empty message of its own, whose wait costs a tenth of a small request.
        self._is_complete = not message.get("more_body", False) or 0 < self._announced <= self._received
        return part

    async def receive(self) -> Message:
        """As ASGI's: the body that was read, then what the server says."""
        if self._content is None:
            return await self._receive()
        content, self._content = self._content, None
        return {"type": "http.request", "body": content, "more_body": False}

    def give_up(self) -> None:
        """Called where the memory is needed for other bodies."""
        self._is_given_up = True
        self.release()

    def release(self) -> None:
        """The bytes of this body are not held any more."""
        self._memory.release(self.held_bytes)
        self.held_bytes, self._content, self._parts = 0, None, []

    async def drain(self) -> None:
        """Read the rest and drop it, so that the client begins to read the response."""
        if self._is_expected and not self._is_begun:
            return
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout_at(self._deadline):
                while not self._is_complete and self._received < MAX_DRAINED_BYTES:
                    await self._next()
