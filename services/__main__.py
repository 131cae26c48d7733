"""Serves the HTTP API with Granian: `python -m services --host 127.0.0.1 --port 3000`."""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops

from digits.settings import load_settings

# BentoML configures its loggers only under `bentoml serve`.
LOGGING: dict[str, Any] = {
    "formatters": {
        name: {"format": f"%(asctime)s {shape}"}
        for name, shape in (("generic", "%(levelname)s %(name)s: %(message)s"), ("access", "%(message)s"))
    },
    "loggers": {
        name: {"handlers": ["console"], "level": "INFO", "propagate": False}
        for name in ("_granian", "bentoml", "digits")
    },
}


def main() -> None:
    """Serve until SIGTERM or SIGINT; workers that die are replaced."""
    settings = load_settings()
    parser = argparse.ArgumentParser(prog="python -m services", description=__doc__)
    parser.add_argument("--host", default=settings.host)
    parser.add_argument("--port", type=int, default=settings.service_port)
    arguments = parser.parse_args()
    share_metrics(settings.home / "metrics")
    Granian(
        "services.classifier:DigitClassifier.to_asgi",
        factory=True,
        address=arguments.host,
        port=arguments.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        loop=Loops.uvloop,
        websockets=False,
        workers=settings.service_workers,
        respawn_failed_workers=True,
        respawn_interval=1,
        # A worker that does not end after the requests under way and the log's last write is killed.
        workers_kill_timeout=25,
        # The middleware answers 503 above its own limit, which must come first.
        backpressure=4 * settings.concurrency_limit,
        log_dictconfig=LOGGING,
    ).serve()


def share_metrics(folder: Path) -> None:
    """Empty the folder in which the workers share their metrics, and name it to them as prometheus_client expects."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


if __name__ == "__main__":
    main()
