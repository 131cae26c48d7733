"""Serves the Evidently UI for reading: `python -m monitoring.evidently_ui --host 127.0.0.1 --port 8000`.

Evidently's own command accepts any Host header, so that a web page whose name is pointed to this machine could read the reports, and
processes requests with a body that do not carry its secret.
"""

import argparse
import os
import re
from secrets import compare_digest, token_urlsafe

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from digits.settings import Settings, load_settings
from monitoring import dashboard

# Evidently's page asks for the points of one panel of a dashboard, in about 150 bytes for each line of the panel.
POINTS = re.compile(r"/api/v2/snapshots/[0-9a-f-]+/data_series_batch")
MAX_POINTS_BYTES = 8192


class ReadOnly:
    """Answers 403 to requests that Evidently's page does not send to show reports, unless they carry the secret."""

    def __init__(self, application: ASGIApp, secret: str) -> None:
        self._application, self._secret = application, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(scope, Headers(scope=scope)):
            refusal = PlainTextResponse("reports are for reading only, unless EVIDENTLY_SECRET sets a secret\n", 403)
            await refusal(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    def _is_allowed(self, scope: Scope, headers: Headers) -> bool:
        if scope["method"] in ("GET", "HEAD") or _asks_for_points(scope, headers):
            return True
        return compare_digest(headers.get("evidently-secret", "").encode(), self._secret)


def _asks_for_points(scope: Scope, headers: Headers) -> bool:
    """Whether Evidently's own page, or another program, asks for points in a body of known and limited length."""
    length, origin = headers.get("content-length", ""), headers.get("origin")
    return (
        scope["method"] == "POST"
        and POINTS.fullmatch(scope["path"]) is not None
        and headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        and (origin is None or origin.partition("://")[2] == headers.get("host"))
        and "transfer-encoding" not in headers
        and re.fullmatch("[0-9]{1,4}", length) is not None
        and int(length) <= MAX_POINTS_BYTES
    )


def main() -> None:
    """Serve the workspace, with our project in it, until SIGTERM or SIGINT."""
    settings = load_settings()
    parser = argparse.ArgumentParser(prog="python -m monitoring.evidently_ui", description=__doc__)
    parser.add_argument("--host", default=settings.private_host)
    parser.add_argument("--port", type=int, default=settings.reports_port)
    arguments = parser.parse_args()

    # Evidently takes seven seconds to import.
    import uvicorn
    from evidently.ui.service.app import create_app, get_config
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # The project is there before any traffic, with the panels of this version.
    dashboard.open_project(settings.workspace)
    # Only writing over HTTP needs this secret, and the platform writes reports into the folder: nobody has to know it.
    secret = os.environ.setdefault("EVIDENTLY_SECRET", "") or token_urlsafe(32)
    application = ReadOnly(create_app(get_config(workspace=str(settings.workspace), secret=secret)), secret)
    served = TrustedHostMiddleware(application, allowed_hosts=allowed_hosts(settings), www_redirect=False)
    uvicorn.run(served, host=arguments.host, port=arguments.port)


def allowed_hosts(settings: Settings) -> list[str]:
    """Host names under which the UI answers, on any port; all where DIGITS_AUTH is off on a public address."""
    return ["*"] if settings.any_host_allowed else settings.local_names


if __name__ == "__main__":
    main()
