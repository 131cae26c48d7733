"""JSON responses, and errors as one sentence: `{"error": "..."}`."""

from typing import Any

import orjson
from bentoml.exceptions import BentoMLException
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response


def to_json(content: Any) -> bytes:
    """JSON of Python values and NumPy arrays."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with `content` as JSON."""
    return Response(to_json(content), status, headers, "application/json")


def problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """An error response."""
    return json({"error": sentence}, status, headers)


async def http_problem(request: Request, error: Exception) -> Response:
    """The error response for an HTTPException, raised by the routes, by Starlette's router or by the middleware."""
    assert isinstance(error, HTTPException)
    sentence = error.detail
    if error.status_code == 404:
        sentence = f"there is nothing at {request.url.path[:80]}; the routes are described at /docs"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        sentence = f"{request.url.path[:80]} does not support {request.method}; send {allowed}"
    return problem(error.status_code, sentence, dict(error.headers or {}))


async def bentoml_problem(request: Request, error: Exception) -> Response:
    """The error response for an exception of an operation, which BentoML gives a status."""
    assert isinstance(error, BentoMLException)
    headers = {"Retry-After": "5"} if error.error_code == 503 else None
    return problem(error.error_code, str(error), headers)
