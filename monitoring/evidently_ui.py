"""Serves the Evidently UI for reading: `python -m monitoring.evidently_ui --host 127.0.0.1 --port 8000`.

Evidently's own command accepts any Host header, so that a web page whose name is pointed to this machine could read the reports.
"""

import argparse
import os
from secrets import token_urlsafe

from digits.settings import Settings, load_settings


def main() -> None:
    """Serve the workspace until SIGTERM or SIGINT."""
    settings = load_settings()
    parser = argparse.ArgumentParser(prog="python -m monitoring.evidently_ui", description=__doc__)
    parser.add_argument("--host", default=settings.private_host)
    parser.add_argument("--port", type=int, default=settings.reports_port)
    arguments = parser.parse_args()

    # Evidently takes seven seconds to import.
    import uvicorn
    from evidently.ui.service.app import create_app, get_config
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Only writing over HTTP needs this secret, and the platform writes reports into the folder: nobody has to know it.
    os.environ.setdefault("EVIDENTLY_SECRET", token_urlsafe(32))
    application = create_app(get_config(workspace=str(settings.workspace)))
    served = TrustedHostMiddleware(application, allowed_hosts=allowed_hosts(settings), www_redirect=False)
    uvicorn.run(served, host=arguments.host, port=arguments.port)


def allowed_hosts(settings: Settings) -> list[str]:
    """Host names under which the UI answers, on any port; all where DIGITS_AUTH is off on a public address."""
    return ["*"] if settings.any_host_allowed else settings.local_names


if __name__ == "__main__":
    main()
