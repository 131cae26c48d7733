"""How many requests of a kind may be under way or wait: work that takes seconds must leave room for the rest."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

# How long a request waits for a slot.
SLOT_SECONDS = 10
DISCONNECT_SECONDS = 0.01
# Of the requests that may be under way, those of a kind that may wait for seconds are at most this share: others find a place.
MAX_SHARE_OF_KIND = 0.25

_under_way: Counter[str] = Counter()


@contextmanager
def counted(kind: str, request: Request) -> Iterator[None]:
    """Count a request of a kind that may wait; raises HTTPException 503 above the share of these."""
    limit = max(1, int(MAX_SHARE_OF_KIND * request.state.context.settings.concurrency_limit))
    if _under_way[kind] >= limit:
        sentence = f"the service has {limit} requests for {kind} under way; ask again in a second"
        raise HTTPException(503, sentence, {"Retry-After": "1"})
    _under_way[kind] += 1
    try:
        yield
    finally:
        _under_way[kind] -= 1


@asynccontextmanager
async def slot(slots: asyncio.Semaphore, request: Request, is_long: bool) -> AsyncIterator[None]:
    """Wait until one is free; raises HTTPException 503 after ten seconds, and ClientDisconnect when the client of long work leaves."""
    await _take(slots, request, is_long)
    try:
        yield
    finally:
        slots.release()


async def _take(slots: asyncio.Semaphore, request: Request, is_long: bool) -> None:
    sentence = f"other pictures have kept the service busy for {SLOT_SECONDS} s; ask again in a few seconds"
    busy = HTTPException(503, sentence, {"Retry-After": "5"})
    if not is_long:
        # Watching the client takes two tasks, which cost as much as decoding a very small picture, and some milliseconds.
        try:
            async with asyncio.timeout(SLOT_SECONDS):
                await slots.acquire()
        except TimeoutError:
            raise busy from None
        return
    taken, left = asyncio.ensure_future(slots.acquire()), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({taken, left}, timeout=SLOT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        # Granian learns a moment after the body that its client has left; a large picture takes longer than this by far.
        await asyncio.wait({left}, timeout=DISCONNECT_SECONDS)
        if left.done():
            raise ClientDisconnect
        if not taken.done():
            raise busy
    except BaseException:
        if not taken.cancel():
            slots.release()
        raise
    finally:
        left.cancel()


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed the connection; the request's body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
