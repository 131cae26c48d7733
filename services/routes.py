"""How strangers ask: the HTTP routes, each of which checks what came in before the champion sees it."""

import asyncio
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from digits import images as pixels
from digits.data import rectification
from digits.images import Images
from digits.storage.api_keys import ApiKey
from digits.storage.predictions import UnknownPrediction
from models.model_store import VerifiedModel
from services import openapi
from services.prediction_log import LogUnavailable
from services.responses import Reply, entry, json, refusal, set_lists, unprocessable
from services.serving_context import ServingContext

PAGE = Path(__file__).parent / "page"
PICTURES_AT_ONCE = 2  # one of 24 million pixels takes 250 MB while it is decoded
LARGE_BYTES = 100_000  # a body from which on checking and answering would hold up other requests
PICTURE_TYPES = ("image/", "application/octet-stream")
# Nothing that a page of ours shows, runs or asks for comes from another host or stands in the page itself.
POLICY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
STYLED = (
    POLICY["Content-Security-Policy"] + "; style-src 'self' 'unsafe-inline'"
)  # Swagger UI styles its elements inline

T = TypeVar("T")
_decoding = asyncio.Semaphore(PICTURES_AT_ONCE)


def application() -> Starlette:
    """The routes; the desk they work at is set on `state.desk` when the service opens."""
    return Starlette(
        routes=[
            Route("/classify", classify, methods=["POST"]),
            Route("/classify_file", classify_file, methods=["POST"]),
            Route("/classify_bulk", classify_bulk, methods=["POST"]),
            Route("/feedback", feedback, methods=["POST"]),
            Route("/predictions/{id}", prediction),
            Route("/about", about),
            Route("/samples", samples),
            Route("/metrics", metrics),
            Route("/openapi.json", description),
            Route("/docs.json", description),  # in the place of BentoML's own, which knows none of these routes
            Route("/", page),
            Route("/draw", page),
            Route("/docs", docs),
            Mount("/page", StaticFiles(directory=PAGE)),
            Mount("/swagger", StaticFiles(directory=_swagger())),
        ],
        exception_handlers={HTTPException: refused},
    )


async def classify(request: Request) -> Response:
    """One image as rows of numbers, or a list of images."""
    return await classify_body(request.app.state.context, await request.body())


async def classify_body(context: ServingContext, body: bytes) -> Response:
    """The same, from its body alone."""
    champion = _at_work(context)
    if len(body) > LARGE_BYTES:
        return await _aside(_classify_large, context, champion, body)
    images, is_single = _read_images(body, context.settings.batch_limit)
    return _write_answers(await context.batcher.answer(images), is_single)


def _classify_large(context: ServingContext, champion: VerifiedModel, body: bytes) -> Response:
    images, is_single = _read_images(body, context.settings.batch_limit)
    return _write_answers(context.answer(champion, images, "/classify"), is_single)


def _read_images(body: bytes, limit: int) -> tuple[Images, bool]:
    """The images (n, 28, 28), and whether the body holds one by itself rather than a list."""
    # Python takes true and false for 1 and 0; one letter of both is looked for first, which numbers hold only as 1e2
    if body.find(b"e", max(body.find(b"["), 0)) >= 0 and (b"true" in body or b"false" in body):
        raise unprocessable("images holds true or false; expected whole numbers from 0 to 255")
    value = _fields(body, {"images"}, {"images"}, '{"images": [28 rows of 28 whole numbers]}')["images"]
    try:
        return pixels.from_json(value, limit), pixels.is_single(value)
    except ValueError as error:
        raise unprocessable(error) from error


def _write_answers(reply: Reply, is_single: bool) -> Response:
    if is_single:
        return json(entry(reply))
    return json(
        {"model_version": reply.version, "predictions": [entry(reply, index) for index in range(len(reply.ids))]}
    )


async def classify_file(request: Request) -> Response:
    """A picture file, as the form field `file` or as the body itself; with `?preview=true` the answer is not logged."""
    context: ServingContext = request.app.state.context
    champion = _at_work(context)
    preview = request.query_params.get("preview", "false")
    if preview not in ("true", "false"):
        raise unprocessable(f'preview is "{preview[:40]}"; expected true or false')
    body = await _picture(request)
    async with _decoding:
        return await _aside(_classify_picture, context, champion, body, 0.0 if preview == "true" else 1.0)


def _classify_picture(context: ServingContext, champion: VerifiedModel, body: bytes, share: float) -> Response:
    try:
        image = rectification.decode(body, context.settings.picture_limit_pixels)
    except ValueError as error:
        raise unprocessable(error) from error
    reply = context.answer(champion, image[None], "/classify_file", share)
    return json({**entry(reply), "image": image})


async def _picture(request: Request) -> bytes:
    """The bytes of the uploaded file."""
    kind = request.headers.get("content-type", "application/octet-stream").lower()
    if kind.startswith(PICTURE_TYPES):
        return await request.body()
    if not kind.startswith("multipart/form-data"):
        raise HTTPException(
            415,
            f'the content type is "{kind[:80]}"; send a picture as the form field "file" or with its own content type',
        )
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise unprocessable('the form has no file under the name "file"; send one, as in curl -F file=@digit.png')
        return await file.read()


async def classify_bulk(request: Request) -> Response:
    """Raw uint8 pixels, 784 bytes per image."""
    context: ServingContext = request.app.state.context
    champion = _at_work(context)
    body = await request.body()
    size = pixels.SIZE * pixels.SIZE
    if not body or len(body) % size:
        raise unprocessable(
            f"the body has {len(body):,} bytes; expected {size} for each image, 0 = paper and 255 = ink"
        )
    images = np.frombuffer(body, np.uint8).reshape(-1, pixels.SIZE, pixels.SIZE)
    await context.room()
    return await _aside(_classify_bulk, context, champion, images)


def _classify_bulk(context: ServingContext, champion: VerifiedModel, images: Images) -> Response:
    reply = context.answer(champion, images, "/classify_bulk", context.settings.bulk_log_sample_rate)
    return json(
        {
            "model_version": reply.version,
            "digits": reply.digits,
            "probabilities": reply.probabilities.max(1),
            "uncertain": reply.uncertain,
            "prediction_sets": set_lists(reply.sets),
            "ids": reply.ids,
        }
    )


async def feedback(request: Request) -> Response:
    """The true digit of an earlier answer; said by the request's key, or by whom it names where no key is needed."""
    context: ServingContext = request.app.state.context
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("application/json"):  # a page of another site cannot send this type unasked
        raise HTTPException(415, f'the content type is "{kind[:80]}"; send application/json')
    fields = _fields(await request.body(), {"id", "digit"}, {"id", "digit", "source"}, '{"id": "…", "digit": 7}')
    id, digit, source = fields["id"], fields["digit"], fields.get("source", "api")
    if not isinstance(id, str):
        raise unprocessable(f"id is {_quote(id)}; expected the id of an answer as a string")
    if not isinstance(digit, int) or isinstance(digit, bool) or not 0 <= digit <= 9:
        raise unprocessable(f"digit is {_quote(digit)}; expected a whole number from 0 to 9")
    if not isinstance(source, str) or not 0 < len(source) <= 64 or not source.isprintable():
        raise unprocessable(f"source is {_quote(source)}; expected who says so in 1 to 64 characters")
    key: ApiKey | None = request.scope["digits.key"]
    source = key.name if key else source
    await _aside(_ask_log, partial(context.log.label, id, digit, source))
    return json({"id": id, "digit": digit, "source": source})


async def prediction(request: Request) -> Response:
    """An earlier answer by its id."""
    context: ServingContext = request.app.state.context
    found = await _aside(_ask_log, partial(context.log.find, request.path_params["id"]))
    return json(
        {
            "id": found.id,
            "digit": found.digit,
            "probability": found.probabilities[found.digit],
            "probabilities": found.probabilities,
            "model_version": found.version,
            "at": found.at,
            "route": found.route,
            "label": None if found.label < 0 else found.label,
            "image": found.image,
        }
    )


async def about(request: Request) -> Response:
    """The version that answers."""
    context: ServingContext = request.app.state.context
    return json(await _aside(context.about))


async def samples(request: Request) -> Response:
    """Digits to try the version on that answers."""
    context: ServingContext = request.app.state.context
    champion = _at_work(context)
    return json({"model_version": champion.version, "samples": await _aside(context.samples, champion)})


async def metrics(request: Request) -> Response:
    """The figures for Prometheus."""
    context: ServingContext = request.app.state.context
    context.update_gauges()
    content, kind = await _aside(context.metrics.render)
    return Response(content, headers={"Content-Type": kind})


async def description(request: Request) -> Response:
    """OpenAPI."""
    context: ServingContext = request.app.state.context
    return json(openapi.document(context.settings.batch_limit))


async def page(request: Request) -> Response:
    """The page to draw on."""
    return FileResponse(PAGE / "index.html", headers=POLICY)


async def docs(request: Request) -> Response:
    """Swagger UI."""
    return FileResponse(PAGE / "docs.html", headers={**POLICY, "Content-Security-Policy": STYLED})


async def refused(request: Request, error: Exception) -> Response:
    """An HTTPException as a sentence."""
    assert isinstance(error, HTTPException)
    return refusal(request, error)


def _at_work(context: ServingContext) -> VerifiedModel:
    """Who is champion now; 503 before the first one."""
    state = context.state
    if state.champion is None:
        raise HTTPException(503, f"there is no champion to answer: {state.warning}", {"Retry-After": "5"})
    return state.champion


def _fields(body: bytes, needed: set[str], known: set[str], example: str) -> dict[str, Any]:
    """The fields of a JSON object; 400 when it is no JSON, 422 when it is another object."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is no JSON ({error}); send {example}") from error
    if not isinstance(value, dict):
        raise unprocessable(f"the body is {_quote(value)}; send {example}")
    for name in sorted(value.keys() - known):
        raise unprocessable(f'there is no field "{name[:40]}"; send {example}')
    for name in sorted(needed - value.keys()):
        raise unprocessable(f'the field "{name}" is missing; send {example}')
    return value


def _quote(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 44 else f"{text[:40]}..."


def _ask_log(question: Callable[[], T]) -> T:
    try:
        return question()
    except UnknownPrediction as error:
        raise HTTPException(404, str(error)) from error
    except LogUnavailable as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from error


async def _aside(work: Callable[..., T], *arguments: Any) -> T:
    """On a thread, so that the other requests go on."""
    return await anyio.to_thread.run_sync(work, *arguments)


def _swagger() -> Path:
    """The files of Swagger UI that BentoML's package brings along."""
    package = importlib.util.find_spec("bentoml._internal.server")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "static_content"
