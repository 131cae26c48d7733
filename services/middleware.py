"""One ASGI middleware for every request: API keys, limits, metrics, and an error sentence whatever happens: `{"error": "..."}`."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from bentoml import get_current_service
from bentoml.exceptions import BentoMLException
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digits.settings import Settings
from services.access import REQUIRED_ROLES, first_segment
from services.routes import ORJSONResponse, router
from services.serving_context import ServingContext

log = logging.getLogger("digits.service")

# A client reads the response only after it has sent its body; this much of a refused body is read and dropped.
MAX_DRAINED_BYTES = 256_000_000
# Routes of BentoML's own application; all others are answered by the Starlette routes, at five times its speed.
BENTOML_PATHS = {"/livez", "/readyz", "/healthz", "/schema.json", "/static_content"}


class RequestMiddleware:
    """Checks a request, then hands it to the routes or to BentoML; a request that it has already checked, to BentoML."""

    def __init__(self, app: ASGIApp, document: dict[str, Any]) -> None:
        self._app, self._document = app, document
        paths = {getattr(route, "path", "") for route in router.routes} | BENTOML_PATHS
        self._paths = {first_segment(path): path for path in paths}
        # those of the API; health checks, metrics and pages say nothing about the volume of traffic
        self._counted = {self._paths[first] for first in REQUIRED_ROLES if first != "/metrics"}
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # closed before it is accepted: 403
            await send({"type": "websocket.close"})
        elif scope["type"] == "http" and "context" not in scope.get("state", {}):
            await self._answer(get_current_service().context, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, context: ServingContext, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 0
        body = _Body(context.settings, scope, receive)

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._in_flight += 1
        try:
            limit = context.settings.concurrency_limit
            # the liveness check and monitoring are answered even then
            if self._in_flight > limit and scope["path"] not in ("/metrics", "/livez"):
                sentence = f"the service has {limit} requests under way; ask again in a second"
                raise HTTPException(503, sentence, {"Retry-After": "1"})
            key = context.access.admit(scope)
            scope["state"] = {**scope.get("state", {}), "context": context, "key": key, "document": self._document}
            # with an "app", Starlette's router raises HTTPException for unknown routes and methods
            scope["app"] = router
            app = self._app if first_segment(scope["path"]) in BENTOML_PATHS else router
            await app(scope, body.receive, observed)
        except ClientDisconnect:
            # as nginx counts clients that closed the connection
            status = 499
        except Exception as error:
            # a bug, too, is answered by a sentence
            response = _problem(scope, error)
            if not status:
                await body.drain()
                await response(scope, receive, observed)
        finally:
            self._in_flight -= 1
            # unknown paths share a label, because Prometheus never forgets one
            route = self._paths.get(first_segment(scope["path"]), "other")
            context.metrics.count_request(route, status, time.perf_counter() - started)
            if route in self._counted and not scope.get("state", {}).get("is_preview"):
                context.prediction_log.counter.count(route, status, requests=1)


class _Body:
    """The body of a request; reading it raises HTTPException 413 above the limit, without keeping it, and 408 if it is late."""

    def __init__(self, settings: Settings, scope: Scope, receive: Receive) -> None:
        self._settings, self._receive = settings, receive
        self._deadline = asyncio.get_running_loop().time() + settings.body_timeout_seconds
        announced = Headers(scope=scope).get("content-length", "")
        self._announced = int(announced) if announced.isdecimal() else 0
        self._received, self._is_complete = 0, False

    async def receive(self) -> Message:
        if self._is_complete:
            # only the message that the client has disconnected can follow
            return await self._receive()
        limit, seconds = self._settings.body_limit_bytes, self._settings.body_timeout_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError:
            sentence = f"the body did not arrive within {seconds:g} s; send it faster, or less at a time"
            raise HTTPException(408, sentence, {"Connection": "close"}) from None
        if (size := max(self._announced, self._received)) > limit:
            sentence = f"the body has {size:,} bytes or more; send at most {limit:,}"
            raise HTTPException(413, sentence, {"Connection": "close"})
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        # Granian says that a body is complete in an empty message of its own, whose wait costs a tenth of a small request.
        self._is_complete = not message.get("more_body", False) or 0 < self._announced <= self._received
        return {**message, "more_body": not self._is_complete}

    async def drain(self) -> None:
        """Read the rest and drop it, so that the client begins to read the response."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                while not self._is_complete and self._received < MAX_DRAINED_BYTES:
                    await self._next()


def _problem(scope: Scope, error: Exception) -> Response:
    """The response for an HTTPException, for an exception of an operation, which has BentoML's status, or for a bug."""
    if isinstance(error, BentoMLException):
        retry = {"Retry-After": "5"} if error.error_code == 503 else None
        return ORJSONResponse({"error": str(error)}, error.error_code, retry)
    if not isinstance(error, HTTPException):
        log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
        return ORJSONResponse({"error": "the service failed at this request"}, 500)
    path, headers = scope["path"][:80], dict(error.headers or {})
    sentences = {
        404: f"there is nothing at {path}; the routes are described at /docs",
        405: f"{path} does not support {scope['method']}; send {headers.get('Allow', 'GET')}",
    }
    return ORJSONResponse({"error": sentences.get(error.status_code, error.detail)}, error.status_code, headers)
