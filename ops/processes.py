"""The whole platform on this machine: its processes under Supervisor, started, watched, restarted and stopped together."""

import configparser
import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import httpx
import psutil

from digits.settings import Settings
from ops import launch

PATIENCE_SECONDS = 300  # the slowest start seen, on two cores with a load of 18, was 168 s
FREE_BYTES = 200_000_000  # empty databases, logs, a first model and its artifacts take 60 MB
DEATHS = 3  # early deaths after which a process is not waited for any longer

# Nothing of the platform reports home, and MLflow starts without the job runners it would add (13 processes, 1.7 GB).
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "digits",
    # In memory, the lease of a killed retraining would be forgotten with the server and its slot taken for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Process:
    """One long-running process of the platform."""

    name: str
    what: str  # for the address table
    command: list[str]
    priority: int  # started in this order, stopped in reverse: clients go before the servers they talk to
    host: str = "127.0.0.1"  # that it listens on
    port: int | None = None
    setting: str | None = None  # that moves the port
    health: str | None = None  # path that answers 200 once it is up


class AlreadyRunning(RuntimeError):
    """A platform runs on this `DIGITS_HOME`."""


class PortTaken(OSError):
    """Somebody else listens on a port the platform needs."""


def processes(settings: Settings) -> list[Process]:
    """What `digits up` starts; a server that a setting names elsewhere is not started here."""
    python, host = [sys.executable, "-m"], ["--host", settings.private_host]
    mlflow = Process(
        name="mlflow",
        what="MLflow: runs and versions",
        command=[
            *(*python, "mlflow", "server", *host, "--port", str(settings.mlflow_port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{settings.home}/mlflow/mlflow.db"),
            *("--artifacts-destination", f"{settings.home}/mlflow/artifacts"),
        ],
        priority=1,
        host=settings.private_host,
        port=settings.mlflow_port,
        setting="DIGITS_MLFLOW_PORT",
        health="/health",
    )
    prefect = Process(
        name="prefect",
        what="Prefect: flows and schedules",
        command=[*python, "prefect", "server", "start", *host, "--port", str(settings.prefect_port)],
        priority=1,
        host=settings.private_host,
        port=settings.prefect_port,
        setting="DIGITS_PREFECT_PORT",
        health="/api/health",
    )
    service = Process(
        name="service",
        what="endpoint and drawing page",
        command=[
            *(*python, "services", "--host", settings.host, "--port", str(settings.service_port)),
        ],
        priority=2,
        host=settings.host,
        port=settings.service_port,
        setting="DIGITS_SERVICE_PORT",
        health="/livez",
    )
    reports = Process(
        name="reports",
        what="Evidently: drift reports",
        command=[
            *(_script("evidently"), "ui", *host, "--port", str(settings.reports_port)),
            *("--workspace", str(settings.workspace)),
        ],
        priority=2,
        host=settings.private_host,
        port=settings.reports_port,
        setting="DIGITS_REPORTS_PORT",
        health="/",
    )
    flows = Process(
        name="flows",
        what="flows on their schedules",
        command=[*python, "flows.deployments"],
        priority=3,
    )
    local_mlflow = [mlflow] if _is_here(settings, settings.mlflow_tracking_uri, settings.mlflow_port) else []
    local_prefect = [prefect] if _is_here(settings, settings.prefect_api_url, settings.prefect_port) else []
    return [*local_mlflow, *local_prefect, service, reports, flows]


def _is_here(settings: Settings, url: str, port: int) -> bool:
    """Whether a setting names the server that this machine would start."""
    parsed = httpx.URL(url)
    return parsed.host in ("127.0.0.1", "localhost", "::1", settings.private_host) and parsed.port == port


def _script(name: str) -> str:
    """A console script of this environment, for a package that cannot be run with `-m`."""
    return str(Path(sys.executable).with_name(name))


def environment(settings: Settings) -> dict[str, str]:
    """What the processes of the platform run with."""
    return {
        **os.environ,
        **ENVIRONMENT,
        "DIGITS_HOME": str(settings.home),
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
        "PREFECT_API_URL": settings.prefect_api_url,
        "PREFECT_HOME": str(settings.home / "prefect"),
        "BENTOML_HOME": str(settings.home / "bentoml"),
    }


@contextmanager
def running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The platform, from starting its processes to the end of the last of them; Supervisor restarts those that die."""
    if any(character in str(settings.home) for character in "%;#"):
        raise ValueError(
            f"DIGITS_HOME is {str(settings.home)!r}; Supervisor reads no paths with %, ; or #, choose another"
        )
    if states(settings):
        raise AlreadyRunning(
            f"the platform already runs on {settings.home}; see `digits status`, stop it with `digits down`"
        )
    end_left_behind(settings)
    wanted = processes(settings)
    _check_ports(wanted)
    configuration = _configure(settings, wanted)
    _check_disk(settings.home)
    # A session of its own: Ctrl-C reaches only this process, which then stops the others in their order.
    with log_of(settings, "supervisor").open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", str(configuration)],
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield supervisor
    finally:
        supervisor.terminate()
        supervisor.wait()
        end_left_behind(settings)


def wait_healthy(settings: Settings, names: list[str], tell: Callable[[str, float], None]) -> None:
    """Wait until each of the processes answers; raises RuntimeError with the log of the one that does not.

    The first states to be seen are those of a Supervisor that has started, so an empty answer later means that it has ended.
    """
    started = time.monotonic()
    waiting = [process for process in processes(settings) if process.name in names]
    deaths: Counter[str] = Counter()
    before: dict[str, str] = {}
    while waiting:
        for process in [process for process in waiting if is_healthy(settings, process)]:
            tell(process.name, time.monotonic() - started)
            waiting.remove(process)
        now = states(settings)
        if before and not now:
            raise RuntimeError(f"Supervisor has ended; read {log_of(settings, 'supervisor')}")
        deaths.update(name for name, state in now.items() if state == "BACKOFF" and before.get(name) != "BACKOFF")
        before = now
        for process in waiting:
            if deaths[process.name] >= DEATHS or time.monotonic() - started > PATIENCE_SECONDS:
                raise RuntimeError(f"{process.name} does not start; read {log_of(settings, process.name)}")
        time.sleep(0.2)


def address(settings: Settings, process: Process) -> str:
    """Where this machine reaches the process."""
    return settings.service_url if process.name == "service" else f"http://{settings.local_host}:{process.port}"


def is_healthy(settings: Settings, process: Process) -> bool:
    """Whether the process answers; of the flows, which have no port, whether they have asked Prefect for work."""
    if process.port is None:
        return _is_polling(settings, process.name)
    try:
        return httpx.get(f"{address(settings, process)}{process.health}", timeout=10).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _is_polling(settings: Settings, name: str) -> bool:
    """Whether the process that serves the deployments has asked for their runs since it was started."""
    info = infos(settings).get(name, {})
    if info.get("statename") not in ("STARTING", "RUNNING"):
        return False
    try:
        found = httpx.post(f"{settings.prefect_api_url}/deployments/filter", json={}, timeout=5)
        if found.status_code in (401, 403):  # a server behind a password, which only Prefect's own client knows
            return info["statename"] == "RUNNING"
        rows = found.raise_for_status().json()
    except httpx.HTTPError:
        return False
    polled = [datetime.fromisoformat(row["last_polled"]).timestamp() for row in rows if row["last_polled"]]
    return max(polled, default=0.0) >= info["start"]


def states(settings: Settings) -> dict[str, str]:
    """Supervisor's word on each process (RUNNING, STARTING, BACKOFF, ...); empty when the platform does not run."""
    return {name: info["statename"] for name, info in infos(settings).items()}


def infos(settings: Settings) -> dict[str, dict[str, Any]]:
    """What Supervisor knows of each process (http://supervisord.org/api.html); empty when the platform does not run."""
    try:
        with _supervisor(settings) as supervisor:
            return {row["name"]: row for row in supervisor.getAllProcessInfo()}
    except (OSError, Fault):
        return {}


def end_left_behind(settings: Settings) -> bool:
    """End the processes of a platform whose Supervisor was killed; whether there were any."""
    found = launch.left_behind(f"unix://{_socket(settings)}")
    launch.end(found)
    return bool(found)


def stop(settings: Settings) -> bool:
    """Stop a platform that runs on this `DIGITS_HOME` and wait for its end; False when none did."""
    try:
        with _supervisor(settings) as supervisor:
            pid = supervisor.getPID()
            supervisor.shutdown()
    except (OSError, Fault):
        return end_left_behind(settings)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _is_alive(pid):  # Supervisor outlives its processes
        if time.monotonic() > deadline:
            raise TimeoutError(f"Supervisor (process {pid}) does not end; read {log_of(settings, 'supervisor')}")
        time.sleep(0.2)
    end_left_behind(settings)
    return True


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not yet waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def log_of(settings: Settings, name: str) -> Path:
    """Where a process writes what it prints."""
    return settings.home / "logs" / f"{name}.log"


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """A closed terminal or a `kill` stops the platform as Ctrl-C does, which a shell may have told us to ignore."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_disk(home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < FREE_BYTES:
        raise OSError(
            f"{home} has {free / 1e6:.0f} MB free, and the platform needs {FREE_BYTES / 1e6:.0f} MB to start; "
            "make room there, or set DIGITS_HOME to a folder on another disk"
        )


def _check_ports(wanted: list[Process]) -> None:
    users: dict[int, str] = {}
    for process in wanted:
        if process.port and process.setting:
            other = users.setdefault(process.port, process.setting)
            if other != process.setting:
                raise PortTaken(f"{other} and {process.setting} are both {process.port}; change one of them")
    for process in wanted:
        if process.port is None:
            continue
        try:
            family, *_, address = socket.getaddrinfo(process.host, process.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(
                    f"cannot listen on {process.host}:{process.port} ({error.strerror}); set DIGITS_HOST"
                ) from error
            raise PortTaken(
                f"port {process.port} for {process.name} is taken; end what listens there or set {process.setting}"
            ) from error


def _configure(settings: Settings, wanted: list[Process]) -> Path:
    """Write the configuration of Supervisor (https://supervisord.org/configuration.html) and make the folders."""
    folders = ("run", "logs", "mlflow/artifacts", "prefect", "bentoml")
    for folder in (*(settings.home / name for name in folders), settings.inbox, settings.workspace):
        folder.mkdir(parents=True, exist_ok=True)
    config = configparser.RawConfigParser()
    config["unix_http_server"] = {"file": str(_socket(settings)), "chmod": "0700"}
    config["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    config["supervisord"] = {
        "logfile": _escaped(log_of(settings, "supervisor")),
        "pidfile": _escaped(settings.home / "run" / "supervisor.pid"),
        "directory": _escaped(Path(__file__).parent.parent),
        "silent": "true",
    }
    for process in wanted:
        config[f"program:{process.name}"] = {
            "command": " ".join(f'"{_escaped(word)}"' for word in _launched(process)),
            "priority": str(process.priority),
            "autorestart": "true",
            "startretries": "1000",
            "startsecs": "5",
            "stopwaitsecs": "20",
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": _escaped(log_of(settings, process.name)),
        }
    path = settings.home / "run" / "supervisor.conf"
    with path.open("w") as file:
        config.write(file)
    return path


def _launched(process: Process) -> list[str]:
    """The command of a server, which first ends what listens on its port in the name of a dead one."""
    return [sys.executable, "-m", "ops.launch", *process.command] if process.port else process.command


def _escaped(value: Path | str) -> str:
    return str(value).replace("%", "%%")


def _socket(settings: Settings) -> Path:
    """Under `var/`, unless the path is longer than the 107 bytes that a Unix socket's address holds."""
    path = settings.home / "run" / "supervisor.sock"
    if len(str(path)) < 90:  # Supervisor binds to a longer temporary name first
        return path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"digits-{name}.sock")


@contextmanager
def _supervisor(settings: Settings) -> Iterator[Any]:
    from supervisor.xmlrpc import SupervisorTransport

    with ServerProxy("http://127.0.0.1", SupervisorTransport(serverurl=f"unix://{_socket(settings)}")) as server:
        yield server.supervisor
