"""What stands before every route: a limit on the body, a count and a time for each request, and a sentence when all else fails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.desk import Desk
from services.replies import problem, refusal

log = logging.getLogger("digits.service")

Endpoint = Callable[[Desk, bytes], Awaitable[Response]]

DRAINED_BYTES = 256_000_000  # of a body that is too large: a client reads the answer only after it has sent it all
STATE_SECONDS = 1.0


class Front:
    """An ASGI application around the Starlette one; plain, because each layer of middleware costs a tenth of the requests.

    A POST to one of the `direct` paths goes to its endpoint as its body alone: Starlette's routing, request and response take a
    tenth of the time of a small one.
    """

    def __init__(self, routes: Starlette, direct: Mapping[str, Endpoint]) -> None:
        self._routes, self._direct = routes, direct
        self.paths = {getattr(route, "path", "") for route in routes.routes}
        self._desk: Desk | None = None
        self._state_is_due = False

    def open(self, desk: Desk) -> None:
        """Begin to answer."""
        self._desk = self._routes.state.desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk = self._desk
        if scope["type"] != "http" or desk is None:
            raise RuntimeError(f"a {scope['type']} request came before the service was open")
        started = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            endpoint = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            bounded = _bounded(scope, receive, desk.where.body_limit_bytes)
            if endpoint is None:
                await self._routes(scope, bounded, sending)
            else:
                response = await _respond(endpoint, desk, scope, bounded)
                status = response.status_code
                await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
                await send({"type": "http.response.body", "body": response.body})
        except ClientDisconnect:
            status = 499  # as nginx counts those who left
        # An exception that leaves a mounted application would end the connection without an answer.
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await problem(500, "the service failed at this request and has logged why")(scope, receive, sending)
        finally:
            self._note(desk, scope["path"], status, time.perf_counter() - started)

    def _note(self, desk: Desk, path: str, status: int, seconds: float) -> None:
        route = path if path in self.paths else "other"
        desk.metrics.count_request(route, status, seconds)
        if not self._state_is_due:
            self._state_is_due = True
            asyncio.get_running_loop().call_later(STATE_SECONDS, self._share_state, desk)

    def _share_state(self, desk: Desk) -> None:
        """Once after requests, not for each."""
        self._state_is_due = False
        desk.update_gauges()


class Shortcut:
    """Middleware of BentoML that hands our routes to the front before BentoML's own layers, a third of a small request's time.

    With `outermost` that is before all of them. BentoML puts middleware like this inside its own, so it moves out when the
    application starts.
    """

    def __init__(self, application: ASGIApp, front: Front, outermost: bool = False) -> None:
        self._application, self._front, self._outermost = application, front, outermost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and self._outermost:
            whole = scope["app"]
            whole.middleware_stack = Shortcut(whole.middleware_stack, self._front)
        ours = scope["type"] == "http" and scope["path"] in self._front.paths
        await (self._front if ours else self._application)(scope, receive, send)


async def _respond(endpoint: Endpoint, desk: Desk, scope: Scope, receive: Receive) -> Response:
    """What the endpoint answers to the body, or why not."""
    try:
        return await endpoint(desk, await _body(receive))
    except HTTPException as error:
        return refusal(Request(scope), error)


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """A receive that answers 413 once the body is larger than the limit, without ever holding more of it."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    size = 0

    async def receiving() -> Message:
        nonlocal size
        if announced.isdigit() and int(announced) > limit:
            await _refuse(receive, int(announced), limit)
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            await _refuse(receive, size, limit)
        return message

    return receiving


async def _refuse(receive: Receive, size: int, limit: int) -> None:
    """Read on without keeping, so that the client comes to reading the answer."""
    drained = 0
    while drained < DRAINED_BYTES:
        message = await receive()
        drained += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            break
    raise HTTPException(413, f"the body has {size:,} bytes or more; send at most {limit:,}", {"Connection": "close"})
