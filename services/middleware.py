"""One ASGI middleware for every request: API keys, limits, metrics, and an error sentence whatever happens."""

import asyncio
import logging
import time
from contextlib import suppress

from bentoml import get_current_service
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.responses import problem
from services.serving_context import ServingContext

log = logging.getLogger("digits.service")

# A client reads the response only after it has sent its body; this much of a refused body is read and dropped.
MAX_DRAINED_BYTES = 256_000_000
# Routes of BentoML's own application; all others are answered by the Starlette routes, at five times its speed.
BENTOML_PATHS = {"/livez", "/readyz", "/healthz", "/schema.json", "/static_content"}


class RequestMiddleware:
    """Added to the service with `add_asgi_middleware`: checks a request, then hands it to `routes` or to BentoML."""

    def __init__(self, app: ASGIApp, routes: Starlette) -> None:
        self._app, self._routes = app, routes
        self._paths = {getattr(route, "path", "") for route in routes.routes} | BENTOML_PATHS
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # closed before it is accepted: 403
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            await self._answer(get_current_service().context, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, context: ServingContext, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._in_flight += 1
        try:
            limit = context.settings.concurrency_limit
            # /metrics is answered even then
            if self._in_flight > limit and scope["path"] not in ("/metrics", "/livez"):
                sentence = f"the service has {limit} requests under way; ask again in a second"
                raise HTTPException(503, sentence, {"Retry-After": "1"})
            key = context.access.admit(scope)
            scope["state"] = {**scope.get("state", {}), "context": context, "key": key}
            app = self._app if _first_segment(scope["path"]) in BENTOML_PATHS else self._routes
            await app(scope, _bounded(context, scope, receive), observed)
        except HTTPException as error:
            await _drain(receive, context.settings.body_timeout_seconds)
            await (await problem(Request(scope), error))(scope, receive, observed)
        except ClientDisconnect:
            # as nginx counts clients that closed the connection
            status = 499
        except Exception as error:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await (await problem(Request(scope), error))(scope, receive, observed)
        finally:
            self._in_flight -= 1
            context.metrics.count_request(self._route(scope["path"]), status, time.perf_counter() - started)

    def _route(self, path: str) -> str:
        """The route as a metric label; unknown paths share one, because a label value is never forgotten."""
        if path in self._paths:
            return path
        first = _first_segment(path)
        return "/predictions/{id}" if first == "/predictions" else first if first in BENTOML_PATHS else "other"


def _first_segment(path: str) -> str:
    return "/" + path.lstrip("/").partition("/")[0]


def _bounded(context: ServingContext, scope: Scope, receive: Receive) -> Receive:
    """A `receive` that raises HTTPException 413 for a body above the limit, without keeping it, and 408 for a late one."""
    limit, seconds = context.settings.body_limit_bytes, context.settings.body_timeout_seconds
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    size = int(announced) if announced.isdigit() else 0
    deadline = asyncio.get_running_loop().time() + seconds
    received, is_complete = 0, False

    async def bounded() -> Message:
        nonlocal received, is_complete
        if is_complete:
            # only the message that the client has disconnected can follow
            return await receive()
        if size > limit:
            await _refuse(receive, size, limit, seconds)
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            sentence = f"the body did not arrive within {seconds:g} s; send it faster, or less at a time"
            raise HTTPException(408, sentence, {"Connection": "close"}) from None
        received += len(message.get("body", b""))
        if received > limit:
            await _refuse(receive, received, limit, seconds)
        is_complete = not message.get("more_body", False)
        return message

    return bounded


async def _refuse(receive: Receive, size: int, limit: int, seconds: float) -> None:
    await _drain(receive, seconds)
    raise HTTPException(413, f"the body has {size:,} bytes or more; send at most {limit:,}", {"Connection": "close"})


async def _drain(receive: Receive, seconds: float) -> None:
    """Read the rest of a body and drop it, so that the client comes to reading the response."""
    drained = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while drained < MAX_DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
