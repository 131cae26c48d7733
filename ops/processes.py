"""The platform's processes on this machine: Supervisor starts, restarts and stops them.

It runs each server through `ops.launcher`, which ends what an earlier one left behind, then becomes the server.
"""

import configparser
import errno
import fcntl
import hashlib
import os
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

import httpx
from supervisor.childutils import getRPCInterface

from digits import files
from digits.settings import Settings, local_url
from ops import launcher, process_environment

# The slowest start measured, on two cores with a load of 18, took 168 s.
STARTUP_TIMEOUT_SECONDS = 300
# Empty databases, logs, a first model and its artifacts take 60 MB.
MIN_FREE_BYTES = 200_000_000
# Supervisor starts a process again that has ended; until then, a failure at the start may be a temporary one.
STARTUP_FAILURE_SECONDS = 20
# Supervisor sets this variable for its processes, and `running` for Supervisor.
SUPERVISORD = {"SUPERVISOR_PROCESS_NAME": "supervisord"}
SOCKET_RECORD = "socket-folder"
# The slot of a retraining that was killed is free again after a minute; one that was started by hand may take longer.
SLOT_WAIT_SECONDS = 3600


@dataclass(frozen=True)
class Process:
    name: str
    description: str
    command: list[str]
    host: str = ""
    port: int | None = None
    # Where this machine reaches the server, and what answers 200 once it is up.
    url: str = ""
    health: str = ""
    # How Supervisor runs it, where that differs from the servers.
    options: dict[str, str] = field(default_factory=dict)


def processes(settings: Settings) -> list[Process]:
    """The processes that `digits up` starts: MLflow and Prefect only if the settings do not name servers elsewhere.

    They start in this order and stop in reverse, so that clients stop before the servers they use.
    """
    python = [sys.executable, "-m"]

    def server(name: str, description: str, health: str, command: list[str]) -> Process:
        port: int = getattr(settings, f"{name}_port")
        host = settings.host if name == "service" else settings.private_host
        # the service reads its own from the settings
        command = command if name == "service" else [*command, "--host", host, "--port", str(port)]
        url = local_url(host, port)
        return Process(name, description, command, host, port, url, f"{url}{health}")

    mlflow = [*python, "mlflow", "server", "--workers", "1", "--app-name", "basic-auth"]
    prefect = [*python, "prefect", "server", "start"]
    started = [
        server("mlflow", "MLflow: runs and versions", "/health", mlflow),
        server("prefect", "Prefect: flows and schedules", "/api/health", prefect),
        server("service", "endpoint and drawing page", "/livez", [*python, "services"]),
        server("reports", "Evidently: drift reports", "/", [*python, "monitoring.evidently_ui"]),
        Process("flows", "scheduled flows", [*python, "flows.deployments"]),
    ]
    urls = {"mlflow": settings.mlflow_tracking_uri, "prefect": settings.prefect_api_url}
    return [p for p in started if p.port is None or p.name not in urls or settings.is_own(urls[p.name], p.port)]


def background_training() -> Process:
    """A retraining that runs when it is started, once: it takes the processor time that the others leave, and ends at once when they do."""
    retrain = [sys.executable, "-m", "ops", "retrain", "--reason", "background", "--wait", str(SLOT_WAIT_SECONDS)]
    options = {
        "autostart": "false",
        "autorestart": "false",
        "startsecs": "0",
        "stopsignal": "INT",
        "stopwaitsecs": "3",
    }
    command = [sys.executable, "-m", "flows.low_priority", *retrain]
    return Process("training", "in training, promoted if better", command, options=options)


def start(settings: Settings, process: Process) -> None:
    """Let Supervisor start a process that does not run."""
    with getRPCInterface(_supervisor(settings)) as server:
        server.supervisor.startProcess(process.name, False)


def end(settings: Settings, process: Process) -> None:
    """Let Supervisor end a process that runs, and wait for its end."""
    with getRPCInterface(_supervisor(settings)) as server:
        server.supervisor.stopProcess(process.name)


def refuse_foreign_home(settings: Settings) -> None:
    """Raises PermissionError for a DIGITS_HOME of another user, or one with logins, databases or folders of another user than root."""
    home, logins = settings.home, (settings.prefect_login_path, settings.mlflow_login_path)
    # The kernel says what is wrong with a home that is no folder.
    for path in (home, *home.glob("*"), *logins) if home.is_dir() else ():
        # Root's own commands leave files in it; a home of root, like /tmp, may be open to all.
        if owner := files.foreign_owner(path, trusts_root=path != home):
            raise PermissionError(
                f"{path} belongs to {owner}, who may have planted logins or API keys; set DIGITS_HOME to a folder of your own"
            )


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the lock of this DIGITS_HOME; raises RuntimeError if another process holds it. The kernel releases it when a holder dies."""
    with suppress(FileExistsError):
        settings.home.mkdir(parents=True)
    folder = os.open(settings.home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another `digits up` or `digits restore` is at work on {settings.home}; wait until it has finished"
            ) from None
        yield
    finally:
        os.close(folder)


@contextmanager
def running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Start the platform's processes and yield Supervisor's; stop all of them at the end.

    Raises ValueError for a path that Supervisor cannot read, OSError for a full disk or a port in use.
    """
    _prepare_home(settings)
    wanted = processes(settings)
    _check_ports(wanted)
    configuration = _configure(settings, wanted)
    if shutil.disk_usage(settings.home).free < MIN_FREE_BYTES:
        raise OSError(errno.ENOSPC, f"less than {MIN_FREE_BYTES / 1e6:.0f} MB free", settings.home)
    # In a session of its own, Supervisor does not get Ctrl-C: this process stops it, which stops the others in order.
    # With -P, no module of the working directory is imported, which may be another user's.
    with log_path(settings, "supervisor").open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "supervisor.supervisord", "--nodaemon", "-c", str(configuration)],
            env=process_environment.of_servers(settings) | _supervisor(settings) | SUPERVISORD,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
            umask=0o077,
        )
    try:
        yield supervisor
    finally:
        stop(settings)
        supervisor.wait()


def _prepare_home(settings: Settings) -> None:
    """Stop and remove what a Supervisor that was killed has left behind, and make the home private.

    Raises ValueError for a path that Supervisor cannot read, PermissionError for what belongs to another user.
    """
    if any(character in str(settings.home) for character in "%;#"):
        raise ValueError(f"DIGITS_HOME is {str(settings.home)!r}; choose a path without %, ; and # for Supervisor")
    stop(settings)
    files.remove_abandoned(settings.home.rglob(".*.tmp"))
    files.make_private(settings.home)
    # Nobody can plant anything from here on.
    refuse_foreign_home(settings)
    _create_socket_folder(settings)


def wait_healthy(supervisor: subprocess.Popen[bytes], settings: Settings, wanted: list[Process]) -> Iterator[Process]:
    """Wait until these processes are healthy; yields each as soon as it is.

    Raises RuntimeError that names the log of a process that does not start, or of Supervisor when that ends.
    """
    started = time.monotonic()
    while wanted:
        if supervisor.poll() is not None:
            raise RuntimeError(f"Supervisor has ended; read {log_path(settings, 'supervisor')}")
        for process in wanted:
            seconds = time.monotonic() - started
            has_failed = state(settings, process.name) == "BACKOFF"
            if is_healthy(settings, process):
                yield process
                wanted = [other for other in wanted if other != process]
            elif seconds > (STARTUP_FAILURE_SECONDS if has_failed else STARTUP_TIMEOUT_SECONDS):
                raise RuntimeError(f"{process.name} does not start; read {log_path(settings, process.name)}")
        time.sleep(0.2)


def is_healthy(settings: Settings, process: Process) -> bool:
    """Whether a server answers its health check; for the flows, whether they run and Prefect knows a worker for them."""
    if process.port:
        return get(process.health).is_success
    if state(settings, process.name) != "RUNNING":
        return False
    login = process_environment.prefect_login(settings)
    auth = httpx.BasicAuth(*login.split(":", 1)) if login else None
    pool = get(f"{settings.prefect_api_url}/work_pools/{settings.work_pool}", auth=auth)
    # Only Prefect's own client has the key of Prefect Cloud.
    return pool.status_code in (401, 403) or (pool.is_success and pool.json()["status"] == "READY")


def get(url: str, timeout_seconds: float = 10, auth: httpx.Auth | None = None) -> httpx.Response:
    """The response of a server, or 503 where it does not answer."""
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=timeout_seconds, auth=auth, verify=_tls_context())
    return httpx.Response(503)


@cache
def _tls_context() -> ssl.SSLContext:
    """For all requests, because reading the certificates takes 30 ms of processor time, and servers that start are polled."""
    return httpx.create_ssl_context()


def state(settings: Settings, name: str) -> str:
    """Supervisor's state of a process (RUNNING, STARTING, BACKOFF, ...), or DOWN."""
    return process_info(settings).get(name, {"statename": "DOWN"})["statename"]


def process_info(settings: Settings) -> dict[str, dict[str, Any]]:
    """Supervisor's information on each process (http://supervisord.org/api.html); empty when the platform does not run."""
    if not _is_socket_folder_ours(settings):
        return {}
    try:
        with getRPCInterface(_supervisor(settings)) as server:
            return {row["name"]: row for row in server.supervisor.getAllProcessInfo()}
    except (OSError, Fault):
        return {}


def stop(settings: Settings) -> bool:
    """Stop the platform on this `DIGITS_HOME`, or what is left of one whose Supervisor was killed; returns False when none runs."""
    # Supervisor ends after all its processes.
    had_supervisor = launcher.end_processes(_supervisor(settings) | SUPERVISORD, STARTUP_TIMEOUT_SECONDS)
    return launcher.end_processes(_supervisor(settings)) or had_supervisor


def log_path(settings: Settings, name: str) -> Path:
    """The file with the output of a process."""
    return settings.home / "logs" / f"{name}.log"


def _check_ports(wanted: list[Process]) -> None:
    """Bind all ports at once, so that no two servers have the same; raises OSError that names those in use and their settings."""
    in_use = []
    with ExitStack() as held:
        for process in [process for process in wanted if process.port]:
            family = socket.AF_INET6 if ":" in process.host else socket.AF_INET
            try:
                held.enter_context(socket.create_server((process.host, process.port), family=family))
            except OSError as error:
                place, setting = f"{process.host}:{process.port}", f"DIGITS_{process.name.upper()}_PORT"
                if error.errno != errno.EADDRINUSE:
                    raise OSError(
                        f"cannot listen on {place} ({error.strerror}); set DIGITS_HOST or {setting}"
                    ) from error
                in_use.append((f"port {process.port} for {process.name}", setting))
    if in_use:
        ports, names = (_enumeration(texts) for texts in zip(*in_use, strict=True))
        raise OSError(f"{ports} {'is' if len(in_use) == 1 else 'are'} in use; stop what listens there or set {names}")


def _enumeration(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _configure(settings: Settings, wanted: list[Process]) -> Path:
    """Write Supervisor's configuration (https://supervisord.org/configuration.html), the folders and the logins."""
    folders = ("run", "logs", "mlflow/artifacts", "prefect", "bentoml")
    for folder in (*(settings.home / name for name in folders), settings.inbox, settings.workspace):
        folder.mkdir(parents=True, exist_ok=True)
    process_environment.generate_logins(settings)
    (url,) = _supervisor(settings).values()
    config = configparser.RawConfigParser()
    config["unix_http_server"] = {"file": url.removeprefix("unix://")}
    factory = "supervisor.rpcinterface:make_main_rpcinterface"
    config["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": factory}
    config["supervisord"] = {
        "logfile": str(log_path(settings, "supervisor")),
        "pidfile": str(settings.home / "run" / "supervisor.pid"),
        "directory": str(Path(__file__).parent.parent).replace("%", "%%"),
    }
    for priority, process in enumerate([*wanted, background_training()]):
        config[f"program:{process.name}"] = _program(settings, process, priority)
    path = settings.home / "run" / "supervisor.conf"
    with path.open("w") as file:
        config.write(file)
    return path


def _program(settings: Settings, process: Process, priority: int) -> dict[str, str]:
    """The section of one process in Supervisor's configuration."""
    (url,) = _supervisor(settings).values()
    # The workers of a server that was killed go on listening on its port, so that its successor ends them first.
    prefix = [sys.executable, "-m", "ops.launcher", url, process.name] if process.port else []
    return {
        "command": shlex.join([*prefix, *process.command]).replace("%", "%%"),
        "priority": str(priority),
        "autorestart": "true",
        "startretries": "1000",
        "startsecs": "5",
        "stopwaitsecs": "20",
        "stopasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": str(log_path(settings, process.name)),
        **process.options,
    }


def _supervisor(settings: Settings) -> dict[str, str]:
    """The environment variable of all processes of this Supervisor; it names its socket."""
    return {"SUPERVISOR_SERVER_URL": f"unix://{_socket_folder(settings) / 'supervisor.sock'}"}


def _socket_folder(settings: Settings) -> Path:
    """The folder of Supervisor's socket: `run`, or the one in /tmp that a file in `run` names."""
    run = settings.home / "run"
    with suppress(FileNotFoundError):
        folder = Path((run / SOCKET_RECORD).read_text())
        # not that of the platform whose folder was copied or moved here
        if folder.name.startswith(_socket_prefix(settings)):
            return folder
    return run


def _socket_prefix(settings: Settings) -> str:
    return f"digits-{hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:16]}-"


def _is_socket_folder_ours(settings: Settings) -> bool:
    """Whether no other user created it: folders in /tmp are removed some time, and their names are known."""
    folder, run = _socket_folder(settings), settings.home / "run"
    with suppress(FileNotFoundError):
        return folder == run or folder.lstat().st_uid == (run / SOCKET_RECORD).stat().st_uid
    return False


def _create_socket_folder(settings: Settings) -> None:
    """A folder in /tmp for this user only, where a path in `run` is too long for the 107 bytes of a Unix socket's address."""
    run = settings.home / "run"
    run.mkdir(exist_ok=True)
    # Supervisor first binds to a longer temporary name.
    is_long = len(os.fsencode(run / "supervisor.sock")) >= 90
    if is_long and (_socket_folder(settings) == run or not _is_socket_folder_ours(settings)):
        (run / SOCKET_RECORD).unlink(missing_ok=True)
        (run / SOCKET_RECORD).write_text(tempfile.mkdtemp(prefix=_socket_prefix(settings)))
