"""`digits up` and `digits status`: starts the processes, trains a first champion if there is none, and prints the addresses."""

import signal
import subprocess
import sys
from contextlib import suppress

import httpx
from rich.console import Console
from rich.text import Text

from digits.data import datasets, sources
from digits.data.sources import SourceUnavailable
from digits.settings import Settings
from digits.storage import api_keys, database
from models.registry_reader import RegistryReader
from ops import endpoint, processes
from ops.tables import print_table

READY_TIMEOUT_SECONDS = 60

console = Console(highlight=False)


def up(settings: Settings) -> None:
    """Start the platform, with a champion that serves; wait until Ctrl-C or the end of Supervisor."""
    if settings.mnist is not None:
        sources.existing_mnist(settings.mnist)
    require_api_key(settings)
    processes.interrupt_on_signals()
    try:
        with processes.running(settings) as supervisor:
            _start(settings)
            if supervisor.wait():
                raise RuntimeError(f"Supervisor has failed; read {processes.log_path(settings, 'supervisor')}")
    except processes.AlreadyRunning:
        print_status(settings)
        raise
    except KeyboardInterrupt:
        pass
    console.print("stopped")


def require_api_key(settings: Settings) -> None:
    """Raises PermissionError when other machines can reach the service, keys are required and none exists."""
    if not settings.is_public or settings.auth == "off":
        return
    if all(key.revoked_at for key in api_keys.by_hash(database.connect(settings.database_url)).values()):
        raise PermissionError(
            f"DIGITS_HOST is {settings.host}, which other machines can reach, and there is no API key; create one with "
            "`digits keys create NAME --role predict`, or set DIGITS_AUTH=off to serve without keys"
        )


def _start(settings: Settings) -> None:
    with console.status("starting MLflow, Prefect, the endpoint and the reports …"):
        processes.wait_healthy(settings, lambda process, s: console.print(f"{process.name} is up after {s:.0f} s"))
    if RegistryReader(settings.mlflow_tracking_uri).version() is None:
        _train_first_champion(settings)
    with console.status("waiting for the endpoint to load the champion …"):
        if not processes.wait_until(lambda: _is_ready(settings), READY_TIMEOUT_SECONDS):
            log = processes.log_path(settings, "service")
            raise TimeoutError(f"the endpoint has not loaded the champion in {READY_TIMEOUT_SECONDS} s; read {log}")
    print_status(settings)
    console.print("Ctrl-C stops all of it.")


def _train_first_champion(settings: Settings) -> None:
    """Run a retraining on the current data set, on MNIST, or where neither is available on the bundled digits."""
    data = [] if datasets.current(settings.datasets) else ["--data", first_source(settings)]
    console.print("there is no champion yet: training one")
    command = [sys.executable, "-m", "ops", "retrain", *data]
    training = subprocess.Popen(command, env=processes.environment(settings))
    try:
        exit_code = training.wait()
    except KeyboardInterrupt:
        _interrupt(training)
        raise
    if exit_code:
        raise RuntimeError("the first training failed (see above); correct its cause and run `digits up` again")
    if RegistryReader(settings.mlflow_tracking_uri).version() is None:
        raise RuntimeError(
            "the gate held the first version (see above); train on more data or with another recipe (DIGITS_RECIPE), and "
            "run `digits up` again"
        )


def _interrupt(training: subprocess.Popen[bytes]) -> None:
    """End a training while MLflow and Prefect still run, so that it can report its end to them."""
    training.send_signal(signal.SIGINT)
    try:
        training.wait(30)
    except subprocess.TimeoutExpired:
        training.kill()
        training.wait()


def first_source(settings: Settings) -> str:
    """`mnist`, or `bundled` with a message where MNIST is not available."""
    try:
        sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)
    except SourceUnavailable as reason:
        console.print(f"{reason}\nUsing the 1,797 digits bundled with scikit-learn.")
        return "bundled"
    return "mnist"


def _is_ready(settings: Settings) -> bool:
    # Supervisor may be restarting the service.
    with suppress(httpx.HTTPError):
        return httpx.get(f"{settings.service_url}/readyz", timeout=5).is_success
    return False


def print_status(settings: Settings) -> bool:
    """Print the address and state of each process and the serving version; whether all processes are healthy."""
    states = processes.states(settings)
    rows: list[tuple[str | Text, ...]] = []
    all_healthy = True
    for process in processes.processes(settings):
        healthy = processes.is_healthy(settings, process)
        all_healthy &= healthy
        state = Text("up", "green") if healthy else Text(states.get(process.name, "down").lower(), "red")
        rows.append((process.description, process.url, state))
    print_table((), [*rows, ("serving version", *_serving_version(settings))])
    return all_healthy


def _serving_version(settings: Settings) -> tuple[str, str]:
    """The version that serves, and its recipe and accuracy."""
    try:
        response = httpx.get(f"{settings.service_url}/about", headers=settings.credentials, timeout=10)
        about = endpoint.read(response)
    except httpx.HTTPError:
        return "none", "the endpoint does not answer"
    except (endpoint.RequestRefused, ConnectionError) as error:
        return "unknown", str(error)
    if about["model_version"] is None:
        return "none", "there is no champion yet"
    accuracy = about["metrics"]["test_accuracy"]
    return f"digits v{about['model_version']}", f"{about['recipe']['name']}, test accuracy {accuracy:.2%}"
