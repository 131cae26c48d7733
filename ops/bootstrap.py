"""`digits up`: start the processes, see to it that there is a champion, print where everything is, and wait."""

import signal
import subprocess
import sys
import time
from contextlib import suppress

import httpx
from rich.console import Console
from rich.table import Table

from digits.data import datasets, sources
from digits.data.sources import SourceUnavailable
from digits.settings import Settings
from digits.storage import api_keys, database
from models.registry_reader import RegistryReader
from ops import endpoint, processes
from ops.processes import AlreadyRunning

console = Console(highlight=False)


def up(settings: Settings) -> None:
    """Everything up, a champion answering, the address table; then wait until Ctrl-C or the end of Supervisor."""
    if processes.states(settings):
        print_status(settings)
        raise AlreadyRunning(f"the platform already runs on {settings.home}; stop it with `digits down`")
    if settings.mnist is not None:
        sources.existing_mnist(settings.mnist)
    _check_door(settings)
    try:
        with processes.signals_as_interrupts(), processes.running(settings) as supervisor:
            _start(settings)
            if supervisor.wait():
                raise RuntimeError(f"the platform ended by itself; read {processes.log_of(settings, 'supervisor')}")
    except KeyboardInterrupt:
        pass
    console.print("stopped")


def _check_door(settings: Settings) -> None:
    """Raises PermissionError where other machines would come in, no key exists, and nobody said that all may."""
    if not settings.is_public or settings.auth == "off":
        return
    if not any(key.revoked_at is None for key in api_keys.by_hash(database.connect(settings.database_url)).values()):
        raise PermissionError(
            f"DIGITS_HOST is {settings.host}, where other machines come in, and there is no API key; make one with "
            "`digits keys create NAME --role predict`, or set DIGITS_AUTH=off to serve without keys"
        )


def _start(settings: Settings) -> None:
    with console.status("starting MLflow, Prefect, the endpoint and the reports …"):
        names = [process.name for process in processes.processes(settings)]
        processes.wait_healthy(
            settings, names, lambda name, seconds: console.print(f"{name} is up after {seconds:.0f} s")
        )
    if RegistryReader(settings.mlflow_tracking_uri).version() is None:
        _train_first(settings)
    with console.status("waiting for the endpoint to load the champion …"):
        _wait_ready(settings)
    print_status(settings)
    console.print("Ctrl-C stops all of it.")


def _train_first(settings: Settings) -> None:
    """A first champion, on the current data set, MNIST, or where neither can be had the bundled digits."""
    data: list[str] = []
    if datasets.current(settings.datasets) is None:
        data = ["--data", first_source(settings)]
    console.print("there is no champion yet: training one")
    command = [sys.executable, "-m", "ops", "retrain", *data]
    training = subprocess.Popen(command, env=processes.environment(settings))
    try:
        failed = training.wait()
    except KeyboardInterrupt:
        _interrupt(training)
        raise
    if failed:
        raise RuntimeError("the first training failed (see above); mend it and start again with `digits up`")
    if RegistryReader(settings.mlflow_tracking_uri).version() is None:
        raise RuntimeError(
            "the gate held the first version (see above); train on more data or with another recipe (DIGITS_RECIPE), and "
            "start again with `digits up`"
        )


def _interrupt(training: subprocess.Popen[bytes]) -> None:
    """Let it tell MLflow and Prefect that it ends, while both are still there."""
    training.send_signal(signal.SIGINT)
    try:
        training.wait(30)
    except subprocess.TimeoutExpired:
        training.kill()
        training.wait()


def first_source(settings: Settings) -> str:
    try:
        sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)
    except SourceUnavailable as reason:
        console.print(f"{reason}\nGoing on with the 1,797 digits bundled with scikit-learn.")
        return "bundled"
    return "mnist"


def _wait_ready(settings: Settings) -> None:
    """Until the endpoint has the champion; its own words where it does not come."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):  # Supervisor may be restarting it
            if httpx.get(f"{settings.service_url}/readyz", timeout=5).is_success:
                return
        time.sleep(0.2)
    raise TimeoutError(f"the endpoint does not take the champion; read {processes.log_of(settings, 'service')}")


def print_status(settings: Settings) -> bool:
    """The address table with the state of each process; whether all of them answer."""
    table = Table(box=None, pad_edge=False, show_header=False)
    states = processes.states(settings)
    healthy = True
    for process in processes.processes(settings):
        answers = processes.is_healthy(settings, process)
        healthy &= answers
        address = processes.address(settings, process) if process.port else ""
        state = "[green]up[/]" if answers else f"[red]{states.get(process.name, 'down').lower()}[/]"
        table.add_row(process.what, address, state)
    table.add_row("answering", *_champion(settings))
    console.print(table)
    return healthy


def _champion(settings: Settings) -> tuple[str, str]:
    """The version that answers and what it is worth."""
    try:
        response = httpx.get(f"{settings.service_url}/about", headers=settings.credentials, timeout=10)
        about = endpoint.read(response)
    except httpx.HTTPError:
        return "nobody", ""
    except (endpoint.Refused, ConnectionError) as error:
        return "not told", str(error)
    if about["model_version"] is None:
        return "nobody yet", ""
    accuracy = about["metrics"]["test_accuracy"]
    return f"digits v{about['model_version']}", f"{about['recipe']['name']}, {accuracy:.2%} right"
