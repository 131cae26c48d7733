"""Serves the HTTP API with Granian, at `DIGITS_HOST` and `DIGITS_SERVICE_PORT`: `python -m services`."""

import argparse
import ctypes
import logging
import os
import resource
import shutil
import socket
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes
from granian.http import HTTP1Settings

from digits import logs
from digits.logs import LogFormat
from digits.settings import Settings, load_settings
from services.metrics import FOLDER_VARIABLE

log = logging.getLogger("digits.service")

# Longer headers are refused with 431. A connection also reads ahead so much of a body that the service has not asked for yet: more
# makes bulk requests faster, and this, times the connections, bounds the memory of unfinished requests. A response that is not read takes its own size in addition.
MAX_HEADER_BYTES = 131_072
# How long the headers may take, and how long a connection may be idle between two requests; then it is closed.
HEADER_TIMEOUT_SECONDS = 10
# File descriptors of a worker for the database, the log, the model and its libraries; 40 are in use.
RESERVED_FILE_DESCRIPTORS = 256
# A worker above the limit for three minutes is replaced; one large picture does not last so long.
MEMORY_SAMPLES, MEMORY_SAMPLE_SECONDS = 6, 30

# Parameters of glibc's mallopt and their values in bytes (malloc.h). Up to the first size, which bulk requests of 5,000 images need,
# freed blocks are used again, and so much free memory is kept for that; larger ones, of pictures, go back to the kernel at once.
MALLOC_OPTIONS = {"M_MMAP_THRESHOLD": (-3, 4 * 2**20), "M_TRIM_THRESHOLD": (-1, 16 * 2**20)}


def logging_of(log_format: LogFormat) -> dict[str, Any]:
    """Granian's logging configuration; BentoML configures its loggers only under `bentoml serve`."""
    loggers = ("_granian", "bentoml", "digits")
    return {
        "formatters": {"generic": {"()": logs.formatter, "log_format": log_format}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stdout"}
        },
        "loggers": {name: {"handlers": ["console"], "level": "INFO", "propagate": False} for name in loggers},
    }


def main() -> None:
    """Serve until SIGTERM or SIGINT; workers that die are replaced."""
    argparse.ArgumentParser(prog="python -m services", description=__doc__).parse_args()
    # what it writes is for its user only
    os.umask(0o077)
    settings = load_settings()
    check_port(settings.host, settings.service_port)
    share_metrics(settings.home / "metrics")
    set_malloc_options()
    _serve(settings)


def check_port(host: str, port: int) -> None:
    """Raises SystemExit for a port in use: Granian binds with SO_REUSEPORT, so each of two services would get half of the requests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        # Python adds the address to the reason, except for names without one
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        advice = "stop what listens there or set DIGITS_SERVICE_PORT"
        raise SystemExit(f"digits: cannot listen on {host}:{port} ({reason}); {advice}") from None


def _serve(settings: Settings) -> None:
    Granian(
        "services.classifier:application",
        factory=True,
        address=settings.host,
        port=settings.service_port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        loop=Loops.uvloop,
        runtime_mode=RuntimeModes.mt,
        websockets=False,
        workers=settings.service_workers,
        respawn_failed_workers=True,
        respawn_interval=1,
        # connections of a worker; further ones wait in the kernel until one is closed
        backpressure=allow_connections(settings.connection_limit),
        http1_settings=HTTP1Settings(
            header_read_timeout=1_000 * HEADER_TIMEOUT_SECONDS, max_buffer_size=MAX_HEADER_BYTES
        ),
        workers_max_rss=settings.worker_memory_mb,
        rss_sample_interval=MEMORY_SAMPLE_SECONDS,
        rss_samples=MEMORY_SAMPLES,
        # longer than the log may take to write what waits, shorter than Supervisor and Kubernetes wait
        workers_kill_timeout=15,
        # the middleware logs them, with their ids
        log_access=False,
        log_dictconfig=logging_of(settings.log_format),
    ).serve()


def allow_connections(wanted: int) -> int:
    """Raise the limit of open files for so many connections; returns how many it allows, with a warning if these are fewer.

    Granian would spend a whole core on failing to accept a connection for which there is no file descriptor.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - RESERVED_FILE_DESCRIPTORS)
    if allowed < wanted:
        log.warning(
            "DIGITS_CONNECTION_LIMIT is %d, but %d open files allow %d; raise `ulimit -n`", wanted, hard, allowed
        )
    return max(1, allowed)


def set_malloc_options() -> None:
    """Let glibc, in the workers too, which Granian forks, use freed memory again, but not keep large blocks; other C libraries stay as they are.

    By default it does the opposite: a bulk request spent a seventh of its time getting memory from the kernel, and large pictures in
    turn with large bodies took 450 MB instead of 320.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, size_bytes in MALLOC_OPTIONS.values():
            libc.mallopt(parameter, size_bytes)


def share_metrics(folder: Path) -> None:
    """Empty the folder in which the workers share their metrics, and name it to them as prometheus_client expects."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER_VARIABLE] = str(folder)


if __name__ == "__main__":
    main()
