"""One ASGI middleware for every request: hosts, API keys, bodies, limits, metrics, and an error sentence whatever happens: `{"error": "..."}`."""

import logging
import os
import time
import traceback
from typing import Any

from bentoml import get_current_service
from bentoml.exceptions import BentoMLException
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digits import logs
from digits.errors import quote
from digits.settings import Settings
from services.access import CLIENT_HEADER, REQUIRED_ROLES, first_segment
from services.hosts import Headers, Hosts
from services.request_body import BodyMemory, RequestBody
from services.routes import QUERY_PARAMETERS, ORJSONResponse, check_query, router
from services.serving_context import ServingContext

log, access_log = logging.getLogger("digits.service"), logging.getLogger("digits.access")

# Routes of BentoML's own application; all others are answered by the Starlette routes, at five times its speed.
BENTOML_PATHS = {"/livez", "/readyz", "/healthz", "/schema.json", "/static_content"}
REQUEST_ID_HEADER = "X-Request-ID"
MAX_REQUEST_ID_BYTES = 64
# Feedback has some 150 bytes, and BentoML's client sends an empty object to /about.
SMALL_BODY_BYTES = 10_000
# The largest form of an image in JSON, with indentation.
ONE_IMAGE_BYTES = 100_000
# What Starlette's CORSMiddleware and BentoML's health checks answer as text.
REPLACED = {
    400: "pages of this origin may not send this method or these headers",
    503: "the service is not ready; /about says why",
}
PROBLEM_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class RequestMiddleware:
    """Checks a request, then hands it to the routes or to BentoML; a request that it has already checked, to BentoML."""

    def __init__(self, app: ASGIApp, document: dict[str, Any], settings: Settings) -> None:
        self._app, self._document, self._settings = app, document, settings
        paths = {getattr(route, "path", "") for route in router.routes} | BENTOML_PATHS
        self._paths = {first_segment(path): path for path in paths}
        # those of the API; health checks, metrics and pages say nothing about the volume of traffic, and are not limited
        self._counted = {self._paths[first] for first in REQUIRED_ROLES if first != "/metrics"}
        self._hosts, self._memory, self._in_flight = Hosts(settings), BodyMemory(settings), 0
        self._body_limits = body_limits(settings)
        self._log_request = log_request if settings.access_log else None
        self._checked: ASGIApp = self._dispatch
        if settings.cors_origins:
            self._checked = CORSMiddleware(
                self._dispatch,
                allow_origins=settings.cors_origins,
                allow_methods=("GET", "POST"),
                allow_headers=("Authorization", "Content-Type", "X-API-Key", CLIENT_HEADER, REQUEST_ID_HEADER),
                expose_headers=(REQUEST_ID_HEADER, "Retry-After"),
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # closed before it is accepted: 403
            await send({"type": "websocket.close"})
        elif scope["type"] == "http" and "context" not in scope.get("state", {}):
            await self._answer(get_current_service().context, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, context: ServingContext, scope: Scope, receive: Receive, send: Send) -> None:
        started, headers = time.perf_counter(), dict(scope["headers"])
        body = RequestBody(receive, headers, self._memory, self._settings.body_timeout_seconds)
        exchange = Exchange(scope, headers, body, send)
        request = logs.request_id.set(exchange.id.decode())
        scope["state"] = {
            **scope.get("state", {}),
            "context": context,
            "exchange": exchange,
            "document": self._document,
        }
        try:
            self._hosts.check(scope, headers)
            await self._checked(scope, body.receive, exchange.send)
        except ClientDisconnect:
            # as nginx counts clients that closed the connection
            exchange.status = 499
        except HTTPException as error:
            await exchange.refuse(error, exchange.send)
        finally:
            body.release()
            # unknown paths share a label, because Prometheus never forgets one
            route, seconds = self._paths.get(first_segment(scope["path"]), "other"), time.perf_counter() - started
            context.metrics.count_request(route, exchange.status, seconds)
            is_traffic = scope["method"] != "OPTIONS" and not scope["state"].get("is_preview")
            if route in self._counted and is_traffic:
                context.prediction_log.counter.count(route, exchange.status, requests=1)
            if self._log_request is not None:
                self._log_request(scope, exchange.status, seconds)
            logs.request_id.reset(request)
            # the exchange refers to the scope, and the scope to the body: this cycle would keep it until a garbage collection
            scope["state"].clear()

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, read the body, and call the route; an exception is answered by its sentence, which pages of other origins may read."""
        state, path, first = scope["state"], scope["path"], first_segment(scope["path"])
        exchange: Exchange = state["exchange"]
        try:
            state["key"] = state["context"].access.admit(scope)
            is_api = self._paths.get(first) in self._counted
            if scope["query_string"] and is_api:
                check_query(scope["query_string"], QUERY_PARAMETERS.get(path, set()))
            if scope["method"] == "POST" and path in self._body_limits:
                check_encoding(exchange.headers)
                state["body"] = await exchange.body.read(self._body_limits[path])
            # BentoML redirects other spellings of its paths to the Host of the request
            is_bentomls = path.startswith("/static_content/") or (path in BENTOML_PATHS and path != "/static_content")
            # with an "app", Starlette's router raises HTTPException for unknown routes and methods
            scope["app"] = router
            app = self._app if is_bentomls else router
            if is_api:
                await self._with_concurrency_limit(app, scope, receive, send)
            else:
                await app(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception as error:
            # a bug, too, is answered by a sentence
            await exchange.refuse(error, send)

    async def _with_concurrency_limit(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at most so many requests of the API at a time; health checks, monitoring and files are not limited."""
        limit = self._settings.concurrency_limit
        if self._in_flight >= limit:
            sentence = f"the service has {limit} requests under way; ask again in a second"
            raise HTTPException(503, sentence, {"Retry-After": "1"})
        self._in_flight += 1
        try:
            await app(scope, receive, send)
        finally:
            self._in_flight -= 1


class Exchange:
    """A request and the response to it: every response carries the id of its request, and every error is JSON."""

    def __init__(self, scope: Scope, headers: Headers, body: RequestBody, send: Send) -> None:
        self.headers, self.body, self.status = headers, body, 0
        self._scope, self._send, self._is_replaced = scope, send, False
        self.id = request_id(headers.get(b"x-request-id", b""))

    async def send(self, message: Message) -> None:
        """As ASGI's; an error of BentoML or Starlette in another form than JSON is replaced by its sentence."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400 and (b"content-type", b"application/json") not in message["headers"]:
                self._is_replaced = True
                allowed = dict(message["headers"]).get(b"allow", b"GET").decode()
                error = HTTPException(
                    self.status, REPLACED.get(self.status), {"Allow": allowed} if self.status == 405 else None
                )
                await problem(self._scope, error)(self._scope, self.body.receive, self._forward)
                return
        if not self._is_replaced:
            await self._forward(message)

    async def _forward(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", self.id)]
        await self._send(message)

    async def refuse(self, error: Exception, send: Send) -> None:
        """Answer with the sentence of an error, unless the response has begun."""
        response = problem(self._scope, error)
        if response.status_code == 500:
            log.error("%s %s failed", self._scope["method"], logs.printable(self._scope["path"]), exc_info=error)
        clear_frames(error)
        if not self.status:
            self.body.release()
            await self.body.drain()
            await response(self._scope, self.body.receive, send)


def log_request(scope: Scope, status: int, seconds: float) -> None:
    """A line of the access log."""
    client, path = (scope.get("client") or ("unknown",))[0], logs.printable(scope["path"])
    milliseconds = round(1_000 * seconds, 1)
    fields = {"client": client, "method": scope["method"], "path": path, "status": status, "milliseconds": milliseconds}
    text = '%s "%s %s HTTP/%s" %d %.1f ms'
    values = client, scope["method"], path, scope["http_version"], status, milliseconds
    access_log.info(text, *values, extra={"http": fields})


def clear_frames(error: BaseException | None) -> None:
    """Free the local variables of all frames that an exception and its causes passed through, a decoded picture of 90 MB for example.

    Exception, frame and future refer to each other, and Python would keep them until a garbage collection.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def request_id(sent: bytes) -> bytes:
    """The client's id if it has at most 64 letters, digits and any of -_.:/+=, or else one of 32 random hexadecimal digits."""
    is_valid = len(sent) <= MAX_REQUEST_ID_BYTES and sent.translate(None, b"-_.:/+=").isalnum()
    return sent if is_valid else os.urandom(16).hex().encode()


def body_limits(settings: Settings) -> dict[str, int]:
    """The maximum size in bytes of the bodies that each route reads."""
    limits = {
        "/classify": settings.json_limit_bytes,
        "/classify_file": settings.body_limit_bytes,
        "/read": settings.body_limit_bytes,
        "/explain": ONE_IMAGE_BYTES,
        "/classify_bulk": settings.body_limit_bytes,
        "/feedback": SMALL_BODY_BYTES,
        "/withdraw": SMALL_BODY_BYTES,
        "/about": SMALL_BODY_BYTES,
    }
    return {path: min(limit, settings.body_limit_bytes) for path, limit in limits.items()}


def check_encoding(headers: Headers) -> None:
    """Raises HTTPException 415 for a compressed body: a small one may become large."""
    for name, plain in ((b"content-encoding", b"identity"), (b"transfer-encoding", b"chunked")):
        encoding = headers.get(name)
        if encoding and encoding.lower() != plain:
            sentence = f"the {name.decode().replace('-', ' ')} is {quote(encoding.decode('latin-1'))}"
            raise HTTPException(415, f"{sentence}; send the body uncompressed", {"Accept-Encoding": "identity"})


def problem(scope: Scope, error: Exception) -> Response:
    """The response for an HTTPException, for an exception of an operation, which has BentoML's status, or for a bug."""
    status, sentence, headers = 500, "the service failed at this request", PROBLEM_HEADERS
    if isinstance(error, BentoMLException):
        status, sentence = error.error_code, str(error)
        headers = headers | ({"Retry-After": "5"} if status == 503 else {})
    elif isinstance(error, HTTPException):
        path, headers = scope["path"][:80], headers | dict(error.headers or {})
        sentences = {
            404: f"there is nothing at {path}; the routes are described at /docs",
            405: f"{path} does not support {scope['method']}; send {headers.get('Allow', 'GET')}",
        }
        status, sentence = error.status_code, sentences.get(error.status_code, error.detail)
    return ORJSONResponse({"error": sentence}, status, headers)
