"""The shapes in which the service answers: JSON by orjson, and problems as one sentence."""

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from services.desk import Reply


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """NumPy's arrays and numbers included."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, "application/json")


def problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """`{"error": sentence}`."""
    return json({"error": sentence}, status, headers)


def unprocessable(error: ValueError | str) -> HTTPException:
    """422: the request can be read, and what it says is wrong."""
    return HTTPException(422, str(error))


def entry(reply: Reply, index: int = 0) -> dict[str, Any]:
    """The answer on one image."""
    digit = reply.digits[index]
    return {
        "id": reply.ids[index],
        "digit": digit,
        "probability": reply.probabilities[index, digit],
        "probabilities": reply.probabilities[index],
        "model_version": reply.version,
    }
