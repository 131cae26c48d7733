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


async def problem(request: Request, error: Exception) -> Response:
    """The response for an HTTPException, for an exception of an operation, which has BentoML's status, or for a bug."""
    path, status, sentence, headers = request.url.path[:80], 500, "the service failed at this request", {}
    if isinstance(error, BentoMLException):
        status, sentence = error.error_code, str(error)
        headers = {"Retry-After": "5"} if status == 503 else {}
    if isinstance(error, HTTPException):
        status, sentence, headers = error.status_code, error.detail, dict(error.headers or {})
        if status == 404:
            sentence = f"there is nothing at {path}; the routes are described at /docs"
        if status == 405:
            sentence = f"{path} does not support {request.method}; send {headers.get('Allow', 'GET')}"
    return json({"error": sentence}, status, headers)
