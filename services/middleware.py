"""What stands before every route: keys, limits, a count and a time for each request, and a sentence when all else fails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.responses import problem, refusal
from services.serving_context import ServingContext

log = logging.getLogger("digits.service")

Endpoint = Callable[[ServingContext, bytes], Awaitable[Response]]

DRAINED_BYTES = 256_000_000  # of a body that is too large: a client reads the answer only after it has sent it all
STATE_SECONDS = 1.0
SWEEP_SECONDS = 0.25


class Arrivals:
    """The requests whose bodies are still on their way; those that take too long are given up.

    One look now and then at all of them: a timer for each took a twentieth of a small request's time.
    """

    def __init__(self) -> None:
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._is_sweeping = False

    async def wait(self, receive: Receive, deadline: float) -> Message:
        """The next message; raises TimeoutError when it has not come by then, in seconds of the loop's clock."""
        task = asyncio.current_task()
        assert task is not None
        self._deadlines[task] = deadline
        if not self._is_sweeping:
            self._is_sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        try:
            return await receive()
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise TimeoutError from None
        finally:
            del self._deadlines[task]

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        self._is_sweeping = bool(self._deadlines)
        if self._is_sweeping:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        for task, deadline in self._deadlines.items():
            if deadline <= now and task not in self._late:
                self._late.add(task)
                task.cancel()


class Front:
    """An ASGI application around the Starlette one; plain, because each layer of middleware costs a tenth of the requests.

    A POST to one of the `direct` paths goes to its endpoint as its body alone: Starlette's routing, request and response take a
    tenth of the time of a small one.
    """

    def __init__(self, routes: Starlette, direct: Mapping[str, Endpoint]) -> None:
        self._routes, self._direct = routes, direct
        self.paths = {getattr(route, "path", "") for route in routes.routes}
        self._desk: ServingContext | None = None
        self._in_flight = 0
        self._arrivals = Arrivals()
        self._state_is_due = False

    def open(self, context: ServingContext) -> None:
        """Begin to answer."""
        self._desk = self._routes.state.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._desk
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it was accepted: 403
            return
        if context is None:
            raise RuntimeError("a request came before the service was open")
        started = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._in_flight += 1
        try:
            self._check_room(context, scope)
            scope["digits.key"] = context.access.admit(scope)
            endpoint = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            limit, seconds = context.settings.body_limit_bytes, context.settings.body_timeout_seconds
            bounded = _bounded(scope, receive, limit, seconds, self._arrivals)
            if endpoint is None:
                await self._routes(scope, bounded, sending)
            else:
                response = await endpoint(context, await _body(bounded))
                status = response.status_code
                await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
                await send({"type": "http.response.body", "body": response.body})
        except HTTPException as error:
            await refusal(Request(scope), error)(scope, receive, sending)
        except ClientDisconnect:
            status = 499  # as nginx counts those who left
        # An exception that leaves a mounted application would end the connection without an answer.
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await problem(500, "the service failed at this request and has logged why")(scope, receive, sending)
        finally:
            self._in_flight -= 1
            self._note(context, scope["path"], status, time.perf_counter() - started)

    def _check_room(self, context: ServingContext, scope: Scope) -> None:
        """503 while too many are under way; the figures can be read even then."""
        if self._in_flight > context.settings.concurrency_limit and scope["path"] != "/metrics":
            sentence = f"the service has {context.settings.concurrency_limit} requests under way; ask again in a second"
            raise HTTPException(503, sentence, {"Retry-After": "1"})

    def _note(self, context: ServingContext, path: str, status: int, seconds: float) -> None:
        route = path if path in self.paths else "/predictions/{id}" if path.startswith("/predictions/") else "other"
        context.metrics.count_request(route, status, seconds)
        if not self._state_is_due:
            self._state_is_due = True
            asyncio.get_running_loop().call_later(STATE_SECONDS, self._share_state, context)

    def _share_state(self, context: ServingContext) -> None:
        """Once after requests, not for each."""
        self._state_is_due = False
        context.update_gauges()


class Shortcut:
    """Middleware of BentoML that hands our routes to the front before BentoML's own layers, a third of a small request's time.

    With `outermost` that is before all of them. BentoML puts middleware like this inside its own, so it moves out when the
    application starts.
    """

    def __init__(self, application: ASGIApp, front: ASGIApp, paths: Set[str], outermost: bool = False) -> None:
        self._application, self._front, self._paths, self._outermost = application, front, paths, outermost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and self._outermost:
            whole = scope["app"]
            whole.middleware_stack = Shortcut(whole.middleware_stack, self._front, self._paths)
        ours = scope["type"] == "http" and scope["path"] in self._paths
        await (self._front if ours else self._application)(scope, receive, send)


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _bounded(scope: Scope, receive: Receive, limit: int, seconds: float, arrivals: Arrivals) -> Receive:
    """A receive that answers 413 once the body is larger than the limit, without ever holding more of it, and 408 when it is late."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    deadline = asyncio.get_running_loop().time() + seconds
    size, arrived = 0, False

    async def receiving() -> Message:
        nonlocal size, arrived
        if arrived:  # what comes now is the news that the client has left
            return await receive()
        if announced.isdigit() and int(announced) > limit:
            await _refuse(receive, int(announced), limit, seconds)
        try:
            message = await arrivals.wait(receive, deadline)
        except TimeoutError:
            sentence = f"the body did not arrive within {seconds:g} s; send it faster, or less at a time"
            raise HTTPException(408, sentence, {"Connection": "close"}) from None
        size += len(message.get("body", b""))
        if size > limit:
            await _refuse(receive, size, limit, seconds)
        arrived = not message.get("more_body", False)
        return message

    return receiving


async def _refuse(receive: Receive, size: int, limit: int, seconds: float) -> None:
    """Read on for a while without keeping, so that the client comes to reading the answer."""
    drained = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while drained < DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
    raise HTTPException(413, f"the body has {size:,} bytes or more; send at most {limit:,}", {"Connection": "close"})
