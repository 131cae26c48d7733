"""How answers leave: Uvicorn writes the head of one and then its body, here both go out in one write.

What kills a worker between the two leaves a client, or a proxy that would have asked another replica, with half an answer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = b"HTTP/1.1 "


class OneWrite(HttpToolsProtocol):
    """Uvicorn's protocol on a transport that holds heads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(HoldingHeads(transport))  # type: ignore[arg-type]


class HoldingHeads:
    """A transport that holds the head of an answer until its body comes, at most to the end of the loop's turn."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def write(self, data: bytes) -> None:
        if data.startswith(HEAD) and not self._head:
            self._head = data
            self._loop.call_soon(self._release)
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data)

    def close(self) -> None:
        self._release()
        self._transport.close()

    def _release(self) -> None:
        if self._head and not self._transport.is_closing():  # by a client that has left
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
