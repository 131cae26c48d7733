"""The shapes in which the service answers: a reply's arrays, JSON by orjson, and problems as one sentence."""

from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from digits.images import Labels

_CODES = 1 << np.arange(10)
_DIGITS = [[digit for digit in range(10) if code >> digit & 1] for code in range(1024)]


class Reply(NamedTuple):
    """What images are answered; every array has length n."""

    version: str
    digits: Labels  # (n,)
    probabilities: NDArray[np.float32]  # (n, 10)
    sets: NDArray[np.bool_]  # (n, 10), the digits that cannot be ruled out
    uncertain: NDArray[np.bool_]  # (n,)
    ids: list[str | None]  # None where the answer is not logged

    def part(self, start: int, end: int) -> "Reply":
        """That of the images from `start` up to `end`."""
        return Reply(
            self.version,
            self.digits[start:end],
            self.probabilities[start:end],
            self.sets[start:end],
            self.uncertain[start:end],
            self.ids[start:end],
        )


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """NumPy's arrays and numbers included."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, "application/json")


def problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """`{"error": sentence}`."""
    return json({"error": sentence}, status, headers)


def refusal(request: Request, error: HTTPException) -> Response:
    """An HTTPException as a sentence."""
    sentence = error.detail
    if error.status_code == 404 and sentence == "Not Found":
        sentence = f"there is nothing at {request.url.path[:80]}; the routes are described at /docs"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        sentence = f"{request.url.path[:80]} does not take {request.method}; send {allowed}"
    return problem(error.status_code, sentence, dict(error.headers or {}))


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
        "uncertain": reply.uncertain[index],
        "prediction_set": np.flatnonzero(reply.sets[index]),
        "model_version": reply.version,
    }


def set_lists(sets: NDArray[np.bool_]) -> list[list[int]]:
    """The digits of each of many sets (n, 10)."""
    return [_DIGITS[code] for code in (sets @ _CODES).tolist()]
