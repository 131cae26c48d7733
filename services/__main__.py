"""Serves the HTTP API with Granian: `python -m services --host 127.0.0.1 --port 3000`."""

import argparse
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes

from digits.settings import load_settings
from services.metrics import FOLDER_VARIABLE

# BentoML configures its loggers only under `bentoml serve`.
LOGGING: dict[str, Any] = {
    "formatters": {
        name: {"format": f"%(asctime)s {shape}"}
        for name, shape in (("generic", "%(levelname)s %(name)s: %(message)s"), ("access", "%(message)s"))
    },
    "loggers": {
        name: {"handlers": [handler], "level": "INFO", "propagate": False}
        for name, handler in (
            ("_granian", "console"),
            ("bentoml", "console"),
            ("digits", "console"),
            ("granian.access", "access"),
        )
    },
}


def main() -> None:
    """Serve until SIGTERM or SIGINT; workers that die are replaced."""
    settings = load_settings()
    parser = argparse.ArgumentParser(prog="python -m services", description=__doc__)
    parser.add_argument("--host", default=settings.host)
    parser.add_argument("--port", type=int, default=settings.service_port)
    arguments = parser.parse_args()
    # Granian binds with SO_REUSEPORT: without this check, a second service on the port would get half of the requests.
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    socket.create_server((arguments.host, arguments.port), family=family).close()
    share_metrics(settings.home / "metrics")
    Granian(
        "services.classifier:application",
        factory=True,
        address=arguments.host,
        port=arguments.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        loop=Loops.uvloop,
        runtime_mode=RuntimeModes.mt,
        websockets=False,
        workers=settings.service_workers,
        respawn_failed_workers=True,
        respawn_interval=1,
        # longer than the log may take to write what waits, shorter than Supervisor and Kubernetes wait
        workers_kill_timeout=15,
        log_access=settings.access_log,
        log_access_format='%(addr)s "%(method)s %(path)s %(protocol)s" %(status)d %(dt_ms).1f ms',
        log_dictconfig=LOGGING,
    ).serve()


def share_metrics(folder: Path) -> None:
    """Empty the folder in which the workers share their metrics, and name it to them as prometheus_client expects."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER_VARIABLE] = str(folder)


if __name__ == "__main__":
    main()
