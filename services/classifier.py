"""The BentoML service that answers which digit an image shows, with a page to draw on.

Run it from the root of the repository: `bentoml serve services.classifier:DigitClassifier --host 127.0.0.1 --port 3000`.
Give every running service a BENTOML_HOME of its own: BentoML empties the metrics in it at each start.
"""

import gc
import logging
from typing import Any

import bentoml
import uvicorn.config
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from digits.settings import Settings, load_settings
from services.middleware import Front, Shortcut
from services.routes import application, classify_body
from services.serving_context import ServingContext


def _options(settings: Settings) -> dict[str, Any]:
    """How BentoML runs the service.

    Its access log, traces and metrics together take three quarters of the requests per second that the routes reach without them.
    The first two are settings; the metrics are our own, because BentoML's grow with every unknown address somebody asks for.
    """
    return {
        "workers": settings.service_workers,
        # BentoML keeps a timer for each request this long, about 0.5 kB each
        "traffic": {"timeout": 10},
        "logging": {"access": {"enabled": settings.access_log}},
        "tracing": {"excluded_urls": "" if settings.traces else ".*"},
        "metrics": {"enabled": False},
    }


def _entrance(front: Front, origins: list[str]) -> ASGIApp:
    """The front, for pages of other origins where some are named."""
    if not origins:
        return front
    headers = ("Authorization", "Content-Type", "X-API-Key")
    return CORSMiddleware(front, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=headers)


# Uvicorn makes up a line for each request while its access log has a handler to go to, whatever becomes of the line.
logging.getLogger("uvicorn.access").propagate = False
uvicorn.config.HTTP_PROTOCOLS["auto"] = (
    "services.wire:OneWrite"  # BentoML has no option for it, and Uvicorn looks there
)
front = Front(application(), direct={"/classify": classify_body})
entrance = _entrance(front, load_settings().cors_origins)


# BentoML reads the options when the module is imported, so this entry point reads the settings here.
@bentoml.service(name="digit_classifier", **_options(load_settings()))
@bentoml.asgi_app(entrance, path="/")
class DigitClassifier:
    """Answers with the champion, follows it, and logs what it answered."""

    def __init__(self) -> None:
        self.context = ServingContext(load_settings())
        front.open(self.context)
        # BentoML leaves a timer and a future per request, and looking through them and all imports for garbage took 100 ms each
        # time: p99 at 8 clients was 100 ms instead of 14.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)

    def __is_ready__(self) -> bool:
        return self.context.champion is not None

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # shipped without types
    def close(self) -> None:
        """Write what waits in the prediction log; BentoML calls this on SIGTERM."""
        self.context.close()


_plain = not (load_settings().access_log or load_settings().traces)  # which are layers of BentoML's
_ours = {"front": entrance, "paths": front.paths, "outermost": _plain}
DigitClassifier.add_asgi_middleware(Shortcut, **_ours)  # type: ignore[attr-defined]  # the decorators made it a Service
