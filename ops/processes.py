"""The platform's processes on this machine: Supervisor starts, restarts and stops them."""

import configparser
import errno
import hashlib
import os
import shlex
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
from itertools import combinations
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import httpx
import psutil

from digits.settings import Settings, local_url
from ops import launch

# The slowest start measured, on two cores with a load of 18, took 168 s.
STARTUP_TIMEOUT_SECONDS = 300
# Empty databases, logs, a first model and its artifacts take 60 MB.
MIN_FREE_BYTES = 200_000_000
MAX_STARTUP_FAILURES = 3

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    # MLflow's job runners are 13 processes with 1.7 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "digits",
    # Leases in memory are lost when the server restarts: the slot of a killed retraining would never be free again.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Process:
    """One long-running process of the platform."""

    name: str
    description: str
    command: list[str]
    # Processes start in this order and stop in reverse, so that clients stop before the servers they use.
    priority: int
    host: str = "127.0.0.1"
    port: int | None = None
    # Where this machine reaches the server, and the path that answers 200 once it is up.
    url: str = ""
    health: str = ""

    @property
    def port_setting(self) -> str:
        return f"DIGITS_{self.name.upper()}_PORT"


class AlreadyRunning(RuntimeError):
    """A platform runs on this `DIGITS_HOME`."""


def processes(settings: Settings) -> list[Process]:
    """The processes that `digits up` starts: MLflow and Prefect only if the settings do not name servers elsewhere."""
    python = [sys.executable, "-m"]
    evidently = str(Path(sys.executable).with_name("evidently"))

    def server(name: str, description: str, command: list[str], priority: int, health: str) -> Process:
        port: int = getattr(settings, f"{name}_port")
        host = settings.host if name == "service" else settings.private_host
        command = [*command, "--host", host, "--port", str(port)]
        return Process(name, description, command, priority, host, port, local_url(host, port), health)

    mlflow = [*python, "mlflow", "server", "--workers", "1"]
    prefect = [*python, "prefect", "server", "start"]
    service = [*python, "services"]
    reports = [evidently, "ui", "--workspace", str(settings.workspace)]
    flows = [*python, "flows.deployments"]
    started = [
        server("mlflow", "MLflow: runs and versions", mlflow, 1, "/health"),
        server("prefect", "Prefect: flows and schedules", prefect, 1, "/api/health"),
        server("service", "endpoint and drawing page", service, 2, "/livez"),
        server("reports", "Evidently: drift reports", reports, 2, "/"),
        Process("flows", "scheduled flows", flows, 3),
    ]
    urls = {"mlflow": settings.mlflow_tracking_uri, "prefect": settings.prefect_api_url}
    return [one for one in started if one.name not in urls or _is_local(settings, urls[one.name], one.port)]


def _is_local(settings: Settings, url: str, port: int | None) -> bool:
    """Whether a setting names the server that this machine would start."""
    parsed = httpx.URL(url)
    return parsed.host in ("127.0.0.1", "localhost", "::1", settings.private_host) and parsed.port == port


def environment(settings: Settings) -> dict[str, str]:
    """The environment variables of the platform's processes."""
    return {
        **os.environ,
        **ENVIRONMENT,
        "DIGITS_HOME": str(settings.home),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{settings.home}/mlflow/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{settings.home}/mlflow/artifacts",
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
        "PREFECT_API_URL": settings.prefect_api_url,
        "PREFECT_HOME": str(settings.home / "prefect"),
        "BENTOML_HOME": str(settings.home / "bentoml"),
    }


@contextmanager
def running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Start the platform's processes and give Supervisor's; stop all of them at the end.

    Raises AlreadyRunning, ValueError for a path that Supervisor cannot read, OSError for a full disk or a port in use.
    """
    if any(character in str(settings.home) for character in "%;#"):
        raise ValueError(f"DIGITS_HOME is {str(settings.home)!r}; choose a path without %, ; and # for Supervisor")
    if states(settings):
        raise AlreadyRunning(f"the platform already runs on {settings.home}; stop it with `digits down`")
    end_orphans(settings)
    wanted = processes(settings)
    _check_ports(wanted)
    configuration = _configure(settings, wanted)
    free = shutil.disk_usage(settings.home).free
    if free < MIN_FREE_BYTES:
        raise OSError(
            f"{settings.home} has {free / 1e6:.0f} MB free, and the platform needs {MIN_FREE_BYTES / 1e6:.0f} MB to start; "
            "make room there, or set DIGITS_HOME to a folder on another disk"
        )
    # In a session of its own, Supervisor does not get Ctrl-C: this process stops it, which stops the others in order.
    with log_path(settings, "supervisor").open("ab") as output:
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
        end_orphans(settings)


def wait_healthy(settings: Settings, on_healthy: Callable[[Process, float], None]) -> None:
    """Wait until every process answers, and call `on_healthy` with each and the seconds that it took.

    Raises RuntimeError that names the log of a process that does not start, or of Supervisor when that ends.
    """
    started = time.monotonic()
    waiting = processes(settings)
    failures: Counter[str] = Counter()
    previous: dict[str, str] = {}
    while waiting:
        for process in [process for process in waiting if is_healthy(settings, process)]:
            on_healthy(process, time.monotonic() - started)
            waiting.remove(process)
        current = states(settings)
        # Supervisor answers only after it has started: an empty answer after one that was not means that it has ended.
        if previous and not current:
            raise RuntimeError(f"Supervisor has ended; read {log_path(settings, 'supervisor')}")
        failures.update(n for n, state in current.items() if state == "BACKOFF" and previous.get(n) != "BACKOFF")
        previous = current
        for process in waiting:
            if failures[process.name] >= MAX_STARTUP_FAILURES or time.monotonic() - started > STARTUP_TIMEOUT_SECONDS:
                raise RuntimeError(f"{process.name} does not start; read {log_path(settings, process.name)}")
        time.sleep(0.2)


def is_healthy(settings: Settings, process: Process) -> bool:
    """Whether a server answers its health check; for the flows, which have no port, whether they poll Prefect."""
    if process.port is None:
        return _is_polling(settings, process.name)
    try:
        return httpx.get(f"{process.url}{process.health}", timeout=10).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _is_polling(settings: Settings, name: str) -> bool:
    """Whether the process that serves the deployments has polled Prefect for flow runs since it started."""
    info = process_info(settings).get(name, {})
    if info.get("statename") not in ("STARTING", "RUNNING"):
        return False
    try:
        response = httpx.post(f"{settings.prefect_api_url}/deployments/filter", json={}, timeout=5)
        # Only Prefect's own client has the password of a protected server.
        if response.status_code in (401, 403):
            return info["statename"] == "RUNNING"
        rows = response.raise_for_status().json()
    except httpx.HTTPError:
        return False
    polled = [datetime.fromisoformat(row["last_polled"]).timestamp() for row in rows if row["last_polled"]]
    return max(polled, default=0.0) >= info["start"]


def states(settings: Settings) -> dict[str, str]:
    """Supervisor's state of each process (RUNNING, STARTING, BACKOFF, ...); empty when the platform does not run."""
    return {name: info["statename"] for name, info in process_info(settings).items()}


def process_info(settings: Settings) -> dict[str, dict[str, Any]]:
    """Supervisor's information on each process (http://supervisord.org/api.html); empty when the platform does not run."""
    try:
        with _supervisor(settings) as supervisor:
            return {row["name"]: row for row in supervisor.getAllProcessInfo()}
    except (OSError, Fault):
        return {}


def end_orphans(settings: Settings) -> bool:
    """End the processes of a platform whose Supervisor was killed; whether there were any."""
    orphans = launch.find_processes(_supervisor_url(settings))
    launch.end(orphans)
    return bool(orphans)


def stop(settings: Settings) -> bool:
    """Stop the platform that runs on this `DIGITS_HOME` and wait for its end; False when none runs."""
    try:
        with _supervisor(settings) as supervisor:
            pid = supervisor.getPID()
            supervisor.shutdown()
    except (OSError, Fault):
        return end_orphans(settings)
    # Supervisor ends after all its processes.
    if not wait_until(lambda: not _is_alive(pid), STARTUP_TIMEOUT_SECONDS):
        raise TimeoutError(f"Supervisor (process {pid}) does not end; read {log_path(settings, 'supervisor')}")
    end_orphans(settings)
    return True


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Check a condition five times a second; whether it became true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which has ended but was not waited for, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def log_path(settings: Settings, name: str) -> Path:
    """The file with the output of a process."""
    return settings.home / "logs" / f"{name}.log"


def interrupt_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, also where a shell has made this process ignore them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _check_ports(wanted: list[Process]) -> None:
    servers = [process for process in wanted if process.port]
    for one, other in combinations(servers, 2):
        if one.port == other.port:
            raise OSError(f"{one.port_setting} and {other.port_setting} are both {one.port}; change one of them")
    for process in servers:
        try:
            family, *_, address = socket.getaddrinfo(process.host, process.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                place = f"{process.host}:{process.port}"
                raise OSError(f"cannot listen on {place} ({error.strerror}); set DIGITS_HOST") from error
            raise OSError(
                f"port {process.port} for {process.name} is in use; "
                f"stop the process that listens on it or set {process.port_setting}"
            ) from error


def _configure(settings: Settings, wanted: list[Process]) -> Path:
    """Write Supervisor's configuration (https://supervisord.org/configuration.html) and create the folders."""
    folders = ("run", "logs", "mlflow/artifacts", "prefect", "bentoml")
    for folder in (*(settings.home / name for name in folders), settings.inbox, settings.workspace):
        folder.mkdir(parents=True, exist_ok=True)
    config = configparser.RawConfigParser()
    config["unix_http_server"] = {"file": str(_socket(settings)), "chmod": "0700"}
    factory = "supervisor.rpcinterface:make_main_rpcinterface"
    config["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": factory}
    config["supervisord"] = {
        "logfile": str(log_path(settings, "supervisor")),
        "pidfile": str(settings.home / "run" / "supervisor.pid"),
        "directory": str(Path(__file__).parent.parent).replace("%", "%%"),
        "silent": "true",
    }
    for process in wanted:
        # A server first ends orphaned workers of its predecessor, which still listen on its port.
        launcher = [sys.executable, "-m", "ops.launch", _supervisor_url(settings), process.name] if process.port else []
        config[f"program:{process.name}"] = {
            "command": shlex.join([*launcher, *process.command]).replace("%", "%%"),
            "priority": str(process.priority),
            "autorestart": "true",
            "startretries": "1000",
            "startsecs": "5",
            "stopwaitsecs": "20",
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": str(log_path(settings, process.name)),
        }
    path = settings.home / "run" / "supervisor.conf"
    with path.open("w") as file:
        config.write(file)
    return path


def _socket(settings: Settings) -> Path:
    """Supervisor's socket, in `var/` unless that path is too long for the 107 bytes of a Unix socket's address."""
    path = settings.home / "run" / "supervisor.sock"
    # Supervisor first binds to a longer temporary name.
    if len(str(path)) < 90:
        return path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"digits-{name}.sock")


def _supervisor_url(settings: Settings) -> str:
    return f"unix://{_socket(settings)}"


@contextmanager
def _supervisor(settings: Settings) -> Iterator[Any]:
    from supervisor.xmlrpc import SupervisorTransport

    with ServerProxy("http://127.0.0.1", SupervisorTransport(serverurl=_supervisor_url(settings))) as server:
        yield server.supervisor
