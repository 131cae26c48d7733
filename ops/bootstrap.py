"""`digits up` and `digits status`: starts the processes, trains a first champion if there is none, and prints the addresses.

`python -m ops.bootstrap` trains the first champion of a platform whose flows run on other machines, then ends.
"""

import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace

from rich.console import Console, RenderableType
from rich.text import Text

from digits.data import datasets, sources
from digits.data.sources import SourceUnavailable
from digits.settings import Settings, load_settings
from digits.storage import api_keys, database
from models import approvals, recipes
from models.registry_reader import RegistryReader, RegistryUnreachable
from ops import background_training, endpoint, process_environment, processes
from ops.tables import print_table

console = Console(highlight=False)


def up(settings: Settings) -> None:
    """Start the platform, with a champion that serves; wait until Ctrl-C or the end of Supervisor."""
    processes.refuse_foreign_home(settings)
    if settings.mnist is not None:
        sources.existing_mnist(settings.mnist)
    for recipe in (settings.first_recipe, settings.recipe):
        recipes.find(recipe)
    require_api_key(settings)
    if processes.process_info(settings):
        print_status(settings)
        raise RuntimeError(f"the platform already runs on {settings.home}; stop it with `digits down`")
    with suppress(KeyboardInterrupt), processes.only_one(settings), processes.running(settings) as supervisor:
        _start(supervisor, settings)
        if supervisor.wait():
            raise RuntimeError(f"Supervisor has failed; read {processes.log_path(settings, 'supervisor')}")
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


def _start(supervisor: subprocess.Popen[bytes], settings: Settings) -> None:
    started, wanted = time.monotonic(), processes.processes(settings)
    with console.status("starting MLflow, Prefect, the endpoint and the reports …"):
        for process in processes.wait_healthy(supervisor, settings, wanted):
            console.print(f"{process.name} is up after {time.monotonic() - started:.0f} s")
    if RegistryReader(settings.registry_uri).version() is None:
        _train_first_champion(settings)
    with console.status("waiting for the endpoint to load the champion …"):
        ready = [replace(process, health=f"{process.url}/readyz") for process in wanted if process.name == "service"]
        list(processes.wait_healthy(supervisor, settings, ready))
    try:
        if background_training.is_needed(settings):
            processes.start(settings, processes.background_training())
    except ConnectionError as error:
        # What serves goes on serving.
        console.print(f"no training starts in the background: {error}")
    print_status(settings)
    console.print("Ctrl-C stops all of it.")


def _train_first_champion(settings: Settings) -> None:
    """Run a retraining on the current data set, on MNIST, or where neither is available on the bundled digits."""
    data = _first_source(settings)
    console.print("there is no champion yet: training one")
    # With -P, no module of the working directory is imported, which may be another user's.
    retrain = [sys.executable, "-P", "-m", "ops", "retrain", "--recipe", settings.first_recipe]
    command = [*retrain, *(["--data", data] if data else [])]
    training = subprocess.Popen(command, env=process_environment.of_clients(settings))
    try:
        training.wait()
    except KeyboardInterrupt:
        # MLflow and Prefect still run, so that the training can report its end to them.
        training.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            training.wait(30)
        training.kill()
        raise
    if training.returncode or RegistryReader(settings.registry_uri).version() is None:
        raise RuntimeError(
            "the first training left no champion (see above); correct the cause and run `digits up` again"
        )


def _first_source(settings: Settings) -> str | None:
    """None where there is a current data set, otherwise `mnist`, or `bundled` with a message where MNIST is not available."""
    if datasets.current(settings.datasets):
        return None
    try:
        sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)
    except SourceUnavailable as reason:
        console.print(f"{reason}\nUsing the 1,797 digits bundled with scikit-learn.")
        return "bundled"
    return "mnist"


def print_status(settings: Settings) -> bool:
    """Print the address and state of each process, the logins and the serving version; returns whether all processes are healthy."""
    rows: list[tuple[RenderableType, ...]] = []
    healthy = {}
    for process in processes.processes(settings):
        state = processes.state(settings, process.name).lower()
        # What answers on the ports of a platform that is down is another one.
        healthy[process.name] = state != "down" and processes.is_healthy(settings, process)
        text = Text("up", "green") if healthy[process.name] else Text(state, "red")
        page = _runs_page(settings) if process.name == "mlflow" and healthy[process.name] else None
        rows.append((process.description, page or process.url, text))
        if process.name == "prefect" and (login := process_environment.prefect_login(settings)):
            rows.append(("  password to paste there", login))
        if process.name == "mlflow" and (account := process_environment.mlflow_login(settings)):
            rows.append((f"  name {account[0]}, password", account[1]))
    serving = _serving_version(settings) if healthy["service"] else ("unknown", "the endpoint is down")
    waiting = _waiting_for_approval(settings, healthy.get("mlflow", True))
    print_table((), [*rows, ("serving version", *serving), *waiting, *background_training.rows(settings)])
    return all(healthy.values())


def _runs_page(settings: Settings) -> str | None:
    """The page of the runs in MLflow; None before the first run, or where the server does not answer."""
    with suppress(RegistryUnreachable):
        experiment = RegistryReader(settings.registry_uri).experiment_id()
        return experiment and settings.experiment_url(experiment)
    return None


def _serving_version(settings: Settings) -> tuple[str, str]:
    """The version that serves, and its recipe and accuracy."""
    try:
        with endpoint.open_client(settings) as client:
            about = endpoint.call(client, "GET", "/about")
    except (ValueError, ConnectionError) as error:
        return "unknown", str(error)
    if about["model_version"] is None:
        return "none", "there is no champion yet"
    accuracy = about["metrics"]["test_accuracy"]
    return f"digits v{about['model_version']}", f"{about['recipe']['name']}, test accuracy {accuracy:.2%}"


def _waiting_for_approval(settings: Settings, is_mlflow_healthy: bool) -> list[tuple[str, str, str]]:
    """A row for each version that waits for approval, with the command that approves it."""
    try:
        if not is_mlflow_healthy:
            raise RegistryUnreachable("MLflow is down")
        with closing(RegistryReader(settings.registry_uri)) as registry:
            found = approvals.queue(registry)
    except RegistryUnreachable as error:
        return [("waits for approval", "unknown", str(error))] if settings.promotion == "ask" else []
    return [
        ("waits for approval", f"digits v{version}", f"since {since:%Y-%m-%d %H:%M} UTC: `digits approve {version}`")
        for version, since in found
    ]


def train_remotely() -> None:
    """Have a first champion trained where there is none, and start the training that goes on in the background.

    Waits for MLflow, Prefect and the deployments; a training that leaves no champion is an error.
    """
    # Prefect takes 2 s to import.
    from flows import deployments

    settings, outcome, problem = load_settings(), "", ""
    registry = RegistryReader(settings.registry_uri)
    while True:
        try:
            if registry.version() is not None:
                if background_training.is_needed(settings):
                    deployments.run_retraining("background", settings.recipe, timeout_seconds=0)
                return
            if outcome:
                raise SystemExit(
                    f"the first training left no champion: {outcome}; read its run in the Prefect UI and start again"
                )
            deployments.wait_for_prefect(settings.prefect_api_url)
            outcome = deployments.run_retraining("first champion", settings.first_recipe, _first_source(settings))
        except RegistryUnreachable as error:
            if str(error) != problem:
                problem = str(error)
                console.print(f"{problem}; trying again every two seconds")
        time.sleep(2)


if __name__ == "__main__":
    train_remotely()
