"""The HTTP routes: each reads its input from the request and calls the operation of its name.

The middleware sets the `state` of every request, reads the body into it, and converts exceptions to responses.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
import orjson
from bentoml.exceptions import NotFound, UnprocessableEntity
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles

from digits.errors import quote
from digits.images import SIZE
from digits.pictures import picture_structure
from digits.storage.api_keys import ApiKey
from digits.storage.label_queue import QUEUES
from models.reading import MAX_LENGTH
from services import json_parts, picture_upload, response_content
from services.access import client_of, is_auditor
from services.prediction_log import is_recent
from services.request_limits import counted, slot
from services.schemas import DEFAULT_QUEUED, MAX_EXCLUDED, MAX_QUEUED
from services.serving_context import ServingContext

PAGE = Path(__file__).parent / "page"
# A picture of 24 million pixels takes 250 MB and a second while it is decoded, so large ones are decoded one after the other. Reading a
# page takes seconds, so one picture is read at a time. Small pictures of one digit do not wait for either, and tiny ones for nothing: they
# are decoded on the event loop, because threads that wait for Python's lock between the steps of decoding take longer than these.
MAX_LARGE_PICTURES, MAX_SMALL_PICTURES = 1, 2
# Larger bodies are parsed on a thread, because they would delay other requests.
LARGE_BYTES = 100_000
# A page loads nothing from another host and contains no inline code; Swagger UI styles its elements inline.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
DOCS_HEADERS = {**SECURITY_HEADERS, "Content-Security-Policy": f"{_POLICY}; style-src 'self' 'unsafe-inline'"}

IMAGES_EXAMPLE = '{"images": [28 rows of 28 whole numbers]}'
FEEDBACK_EXAMPLE = '{"id": "…", "digit": 7}, or "is_digit": false in place of the digit'
IMAGE_EXAMPLE = '{"image": [28 rows of 28 whole numbers]}'
# Routes with query parameters.
QUERY_PARAMETERS = {
    "/classify_file": {"preview"},
    "/read": {"preview", "length", "pattern"},
    "/label_queue": {"limit", "queue", "exclude"},
}
# Of the JSON bodies above LARGE_BYTES, so many are parsed at a time.
MAX_CONCURRENT_PARSES = 2

_queueing = anyio.CapacityLimiter(1)
_parsing, _explaining = anyio.CapacityLimiter(MAX_CONCURRENT_PARSES), anyio.CapacityLimiter(1)
_large_pictures, _small_pictures = asyncio.Semaphore(MAX_LARGE_PICTURES), asyncio.Semaphore(MAX_SMALL_PICTURES)
_reading = asyncio.Semaphore(1)
# apart from the threads of all other operations
_decoding = anyio.CapacityLimiter(MAX_LARGE_PICTURES + MAX_SMALL_PICTURES + 1)


def to_json(content: Any) -> bytes:
    """JSON of Python values and NumPy arrays."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class ORJSONResponse(JSONResponse):
    def render(self, content: Any) -> bytes:
        return to_json(content)


async def classify(request: Request) -> Response:
    """One image as nested lists, or a list of images."""
    context: ServingContext = request.state.context
    client, body = client_of(request), request.state.body
    if len(body) > LARGE_BYTES:
        _check_size(body, context.settings.batch_limit)
        return await _in_thread(_classify_large, context, body, client, limiter=_parsing)
    images, is_single = context.read_images(_pixels(body, "images", IMAGES_EXAMPLE))
    return ORJSONResponse(response_content.predictions(await context.batcher.predict(images, client), is_single))


def _classify_large(context: ServingContext, body: bytes, client: str) -> Any:
    try:
        images = json_parts.read(body, context.settings.batch_limit)
    except orjson.JSONDecodeError as error:
        raise _not_json(error, IMAGES_EXAMPLE) from error
    except ValueError as error:
        raise UnprocessableEntity(str(error)) from error
    return response_content.predictions(context.predict(images, "/classify", [client] * len(images)), False)


def _check_size(body: bytes, max_images: int) -> None:
    """Raises UnprocessableEntity if the body has twice as many lists as that many images: each list takes 30 times its two bytes."""
    count, limit = body.count(b"[") + body.count(b"{"), 2 * (SIZE + 1) * (max_images + 1)
    if count > limit:
        raise UnprocessableEntity(f"the body has {count:,} lists and objects; send at most {max_images:,} images")


def _pixels(body: bytes, name: str, example: str) -> Any:
    """The nested lists in the only field of a JSON object."""
    value = _fields(body, {name}, {name}, example)[name]
    try:
        json_parts.refuse_booleans(body)
    except ValueError as error:
        raise UnprocessableEntity(str(error)) from error
    return value


def check_query(query: bytes, known: set[str]) -> None:
    """Raises UnprocessableEntity for a query parameter that the route does not have, or has twice."""
    names = [name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)]
    for name in names:
        if name not in known or names.count(name) > 1:
            problem = "is sent twice" if name in known else "is not one of this route"
            expected = f"the route has {', '.join(sorted(known))}" if known else "the route has none"
            raise UnprocessableEntity(f"the query parameter {quote(name)} {problem}; {expected}")


async def classify_file(request: Request) -> Response:
    """A picture file, as the form field `file` or as the body; with `preview=true` the prediction is not logged."""
    picture, fields = await picture_upload.read(request)
    context: ServingContext = request.state.context
    is_preview, client = picture_upload.read_preview(request, fields), client_of(request)
    if picture_structure.is_tiny(picture):
        return ORJSONResponse(await context.classify_tiny_file(picture, is_preview, client))
    operation = partial(context.classify_file, picture, is_preview, client)
    if picture_structure.is_small(picture):
        async with slot(_small_pictures, request, is_long=False):
            return await _in_thread(operation, limiter=_decoding)
    with counted("large pictures", request):
        async with slot(_large_pictures, request, is_long=True):
            return await _in_thread(operation, limiter=_decoding)


async def read(request: Request) -> Response:
    """A picture file with any number of digits, as `classify_file`; `length` and `pattern` say what each line looks like."""
    picture, fields = await picture_upload.read(request)
    is_preview, length = picture_upload.read_preview(request, fields), fields.get("length")
    if length is not None and not (length.isascii() and length.isdecimal() and len(length) < 10):
        raise UnprocessableEntity(f"length is {quote(length)}; expected a whole number from 1 to {MAX_LENGTH}")
    number = None if length is None else int(length)
    context, client = request.state.context, client_of(request)
    operation = partial(context.read, picture, is_preview, fields.get("pattern"), number, client)
    slots = _reading if picture_structure.is_small(picture) else _large_pictures
    with counted("readings", request):
        async with slot(slots, request, is_long=slots is _large_pictures or slots.locked()):
            return await _in_thread(operation, limiter=_decoding)


async def explain(request: Request) -> Response:
    """One image as nested lists; takes as long as 256 classifications, so one is explained at a time."""
    image = _pixels(request.state.body, "image", IMAGE_EXAMPLE)
    with counted("explanations", request):
        return await _in_thread(request.state.context.explain, image, limiter=_explaining)


async def classify_bulk(request: Request) -> Response:
    """Raw uint8 pixels, 784 bytes for each image."""
    client, body = client_of(request), request.state.body
    with counted("bulk predictions", request):
        await request.state.context.wait_for_log()
        return await _in_thread(request.state.context.classify_bulk, body, client)


async def feedback(request: Request) -> Response:
    """The true digit of an earlier prediction; its source is the API key, or the `source` field without one."""
    fields = _label_fields(request, {"digit", "is_digit"}, FEEDBACK_EXAMPLE)
    if "digit" not in fields and fields.get("is_digit", True) is True:
        raise UnprocessableEntity(f'the field "digit" is missing; send {FEEDBACK_EXAMPLE}')
    facts = fields.get("digit"), fields["source"], fields.get("is_digit", True)
    return await _once_stored(request, request.state.context.labels.feedback, fields["id"], *facts)


async def withdraw(request: Request) -> Response:
    """A label of a prediction from this source is taken back: the one with this number, or the most recent one."""
    fields = _label_fields(request, {"label_number"}, '{"id": "…"}')
    facts = fields["source"], fields.get("label_number")
    return await _once_stored(request, request.state.context.labels.withdraw, fields["id"], *facts)


def _label_fields(request: Request, more: set[str], example: str) -> dict[str, Any]:
    """The fields of a request about a label, with the name of the API key as the source where there is one."""
    content_type = request.headers.get("content-type", "")
    # A page of another site cannot send this type without asking first (CORS).
    if not content_type.lower().startswith("application/json"):
        raise HTTPException(415, f'the content type is "{content_type[:80]}"; send application/json')
    key: ApiKey | None = request.state.key
    fields = _fields(request.state.body, {"id"}, {"id", "source", *more}, example)
    return {"source": "api", **fields, **({"source": key.name} if key else {})}


async def queue(request: Request) -> Response:
    """Images to label next; it searches thousands of answers, so one queue is made at a time."""
    query = request.query_params
    limit, name, exclude = query.get("limit", str(DEFAULT_QUEUED)), query.get("queue"), query.get("exclude", "")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= MAX_QUEUED):
        raise UnprocessableEntity(f"limit is {quote(limit)}; expected a whole number from 1 to {MAX_QUEUED}")
    if name is not None and name not in QUEUES:
        raise UnprocessableEntity(f"queue is {quote(name)}; expected one of {', '.join(QUEUES)}")
    ids = {id for id in exclude.split(",") if id}
    if len(ids) > MAX_EXCLUDED:
        raise UnprocessableEntity(f"exclude has {len(ids):,} ids; send at most {MAX_EXCLUDED:,}")
    key: ApiKey | None = request.state.key
    client = None if key is None or is_auditor(key) else key.name
    with counted("label queues", request):
        arguments = int(limit), name, ids, client
        return await _in_thread(request.state.context.labels.label_queue, *arguments, limiter=_queueing)


async def stored_prediction(request: Request) -> Response:
    return await _once_stored(request, request.state.context.labels.stored_prediction, request.path_params["id"])


async def _once_stored(request: Request, operation: Callable[..., Any], id: str, *arguments: Any) -> Response:
    """The response of an operation on a prediction; one of the last minute may not be stored yet, then it is tried again."""
    prediction_log = request.state.context.prediction_log
    with counted("logged predictions", request):
        for wait in (prediction_log.settle, prediction_log.settle_others):
            try:
                return await _in_thread(operation, id, *arguments)
            except NotFound:
                if not is_recent(id):
                    raise
                await wait()
        return await _in_thread(operation, id, *arguments)


async def about(request: Request) -> Response:
    return await _in_thread(request.state.context.about)


async def samples(request: Request) -> Response:
    return await _in_thread(request.state.context.samples)


async def metrics(request: Request) -> Response:
    text, content_type = await anyio.to_thread.run_sync(request.state.context.metrics.render)
    return Response(text, headers={"Content-Type": content_type})


async def document(request: Request) -> Response:
    return ORJSONResponse(request.state.document)


async def page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers=SECURITY_HEADERS)


async def label_page(request: Request) -> Response:
    return FileResponse(PAGE / "label.html", headers=SECURITY_HEADERS)


async def docs(request: Request) -> Response:
    return FileResponse(PAGE / "docs.html", headers=DOCS_HEADERS)


def _fields(body: bytes, required: set[str], known: set[str], example: str) -> dict[str, Any]:
    """The fields of a JSON object; 400 if the body is not JSON, 422 if it is another value."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _not_json(error, example) from error
    if not isinstance(value, dict):
        raise UnprocessableEntity(f"the body is {quote(value)}; send {example}")
    for name in sorted(value.keys() - known):
        raise UnprocessableEntity(f'there is no field "{name[:40]}"; send {example}')
    for name in sorted(required - value.keys()):
        raise UnprocessableEntity(f'the field "{name}" is missing; send {example}')
    return value


def _not_json(error: orjson.JSONDecodeError, example: str) -> HTTPException:
    return HTTPException(400, f"the body is not JSON ({error}); send {example}")


async def _in_thread(
    operation: Callable[..., Any], *arguments: Any, limiter: anyio.CapacityLimiter | None = None
) -> Response:
    """The response of an operation that would delay other requests on the event loop."""
    return await anyio.to_thread.run_sync(lambda: ORJSONResponse(operation(*arguments)), limiter=limiter)


router = Router(
    routes=[
        Route("/classify", classify, methods=["POST"]),
        Route("/classify_file", classify_file, methods=["POST"]),
        Route("/read", read, methods=["POST"]),
        Route("/explain", explain, methods=["POST"]),
        Route("/classify_bulk", classify_bulk, methods=["POST"]),
        Route("/feedback", feedback, methods=["POST"]),
        Route("/withdraw", withdraw, methods=["POST"]),
        Route("/label_queue", queue),
        Route("/predictions/{id}", stored_prediction),
        # BentoML's client sends POST
        Route("/about", about, methods=["GET", "POST"]),
        Route("/samples", samples),
        Route("/metrics", metrics),
        Route("/openapi.json", document),
        Route("/docs.json", document),
        Route("/", page),
        Route("/draw", page),
        Route("/label", label_page),
        Route("/docs", docs),
        Mount("/page", StaticFiles(directory=PAGE)),
    ],
    # a redirect would name the Host of the request
    redirect_slashes=False,
)
