"""The command line `digits`; each command imports what it needs, so that help answers at once."""

import errno
import gc
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from digits.settings import Settings, load_settings

app = typer.Typer(
    help="Trains, promotes, serves and watches handwritten-digit recognisers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[
    str,
    typer.Option(help="`mnist`, `bundled`, or a path: .npz, Kaggle .csv[.gz], folder of IDX files, pictures by digit."),
]
RoleNames = Annotated[list[str], typer.Option("--role", help="predict, feedback or admin; may be given several times.")]
CurrentData = Annotated[str | None, typer.Option(help="A SOURCE; unless given, the current data set.")]
Reason = Annotated[str, typer.Option("--why", help="Recorded in the ledger.")]


keys_app = typer.Typer(help="API keys of the service.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Run a command; what goes wrong ends in one sentence and a non-zero exit."""
    log = logging.getLogger("digits")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())  # not the root: Prefect's lines are for its server
    gc.set_threshold(
        100_000, 50, 100
    )  # at its usual 700 objects, it takes a twelfth of a command that imports large libraries
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.stderr.write("digits: interrupted\n")
        raise SystemExit(130) from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        name = f"DIGITS_{name.upper()}" if error.title == "Settings" and name.islower() else name
        told = first["msg"].removeprefix("Value error, ")  # which is a sentence of ours, and quotes the value
        _fail(f"{name}: {told}" if told != first["msg"] else f"{name}: {told}, got {first['input']!r}")
    except OSError as error:
        _fail(_reason(error))
    except (ValueError, LookupError, RuntimeError) as error:
        _fail(str(error) or type(error).__name__)
    except Exception as error:  # the outermost border: no library's exception ends in a traceback on the terminal
        _fail(
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}; {_keep_traceback()}"
        )


def _reason(error: OSError) -> str:
    """Our own sentences as they are; what the operating system says with the file it says it of, and what helps."""
    if error.errno is None:
        return str(error) or type(error).__name__
    place = error.filename or load_settings().home
    recommendations = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        recommendations = "; make room there and do it again"
    elif Path(str(place)).absolute().is_relative_to(load_settings().home):
        recommendations = "; set DIGITS_HOME to a folder that can be written"
    return f"{place}: {os.strerror(error.errno)}{recommendations}"


def _fail(sentence: str) -> None:
    sys.stderr.write(f"digits: {sentence}\n")
    raise SystemExit(1)


def _keep_traceback() -> str:
    """Write the traceback of the current exception to a file; where it is, in words."""
    path = load_settings().home / "logs" / "traceback.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
    except OSError as error:
        return f"its traceback could not be kept ({error.strerror})"
    return f"its traceback is in {path}"


@app.command()
def up() -> None:
    """Start the whole platform on this machine and stay in the foreground; Ctrl-C stops all of it."""
    from ops import bootstrap

    bootstrap.up(load_settings())


@app.command()
def down() -> None:
    """Stop a platform that was started elsewhere with `digits up`."""
    from ops import processes

    settings = load_settings()
    print("stopped" if processes.stop(settings) else f"nothing runs on {settings.home}")


@app.command()
def status() -> None:
    """What is up, where, and which version answers."""
    from ops import bootstrap

    if not bootstrap.print_status(load_settings()):
        raise SystemExit(1)


@app.command()
def backup(target: Annotated[Path, typer.Argument(metavar="FOLDER|FILE.tar")]) -> None:
    """Copy all state into a new folder or .tar file, also while the platform runs."""
    from ops import backup

    print(f"backed up to {target}: {backup.back_up(load_settings(), target)}")


@app.command()
def restore(source: Annotated[Path, typer.Argument(metavar="FOLDER|FILE.tar")]) -> None:
    """Put what `digits backup` wrote into an empty DIGITS_HOME."""
    from ops import backup

    settings = load_settings()
    print(f"restored {source} into {settings.home}: {backup.restore(settings, source)}; start it with `digits up`")


@app.command()
def ingest(data: Data = "mnist") -> None:
    """Read, check and store a data set; the next retraining starts from it."""
    from ops import flow_runs

    flow_runs.silence_prefect()
    from flows.ingest import start_from

    print(start_from.fn(data, load_settings()))


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="Name of a recipe; see `digits recipes`.")] = "compact",
    data: CurrentData = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's own number.")] = None,
) -> None:
    """Train once and register the result as a candidate."""
    from models import recipes

    changes = {"seed": seed} | ({"epochs": epochs} if epochs else {})
    chosen = recipes.find(recipe).model_copy(update=changes)
    from ops.flow_runs import flows_in_this_process

    with flows_in_this_process() as settings:
        from flows.train import train

        version = train(chosen, data)
        _print_version(settings, version)


@app.command()
def retrain(
    recipe: Annotated[str | None, typer.Option(help="Instead of the setting DIGITS_RECIPE.")] = None,
    data: Annotated[str | None, typer.Option(help="A SOURCE, instead of the current data set.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Take in new data, train a candidate, and promote it only if it is really better."""
    from ops.flow_runs import flows_in_this_process

    with flows_in_this_process():
        from flows.retrain import retrain

        retrain(recipe, data, seed)


@app.command()
def promote(version: str, why: Reason = "by hand") -> None:
    """Make VERSION the champion, after checking that it loads and answers."""
    settings = load_settings()
    registry = _registry(settings)
    from digits.storage import database
    from models import promotion

    promotion.promote(registry, _store(settings), database.connect(settings.database_url), version, why)


@app.command()
def rollback(why: Reason = "by hand") -> None:
    """Go back to the previous champion."""
    settings = load_settings()
    registry = _registry(settings)
    from digits.storage import database
    from models import promotion

    promotion.roll_back(registry, _store(settings), database.connect(settings.database_url), why)


@app.command()
def ledger() -> None:
    """Every promotion and rollback, oldest first."""
    from rich.table import Table

    from digits.storage import database
    from digits.storage import ledger as book

    table = Table("when (UTC)", "what", "from", "to", "by", "why", box=None, pad_edge=False)
    entries = book.entries(database.connect(load_settings().database_url))
    if not entries:
        print("nothing was promoted yet")
        return
    for entry in entries:
        when = f"{entry.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, entry.action, entry.from_version or "–", entry.to_version, entry.by, entry.why)
    _show(table)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose it is; feedback is kept under it, and `audit` is the auditors'.")],
    role: RoleNames,
    rate: Annotated[int | None, typer.Option(min=1, help="Requests per minute, instead of the setting's.")] = None,
) -> None:
    """Make a key and print it, this once; what is kept does not tell it."""
    from digits.storage import api_keys, database

    print(api_keys.create(database.connect(load_settings().database_url), name, role, rate))


@keys_app.command("list")
def list_keys() -> None:
    """Every key with its roles; revoked ones too."""
    from rich.table import Table

    from digits.storage import api_keys, database

    table = Table("name", "roles", "requests a minute", "made (UTC)", "revoked (UTC)", box=None, pad_edge=False)
    settings = load_settings()
    for key in api_keys.by_hash(database.connect(settings.database_url)).values():
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M:%S}" if key.revoked_at else "–"
        rate = f"{key.rate_per_minute or settings.rate_per_minute:,}"
        table.add_row(key.name, ", ".join(sorted(key.roles)), rate, f"{key.created_at:%Y-%m-%d %H:%M:%S}", revoked)
    _show(table)


@keys_app.command("revoke")
def revoke_key(name: str) -> None:
    """Refuse the key from now on; every worker knows within seconds."""
    from digits.storage import api_keys, database

    api_keys.revoke(database.connect(load_settings().database_url), name)


@app.command()
def recipes() -> None:
    """The recipes that can be trained."""
    from rich.table import Table

    from models.recipes import RECIPES

    table = Table("recipe", "layers", "optimiser", "epochs", "batch", "reported", box=None, pad_edge=False)
    for name, preset in RECIPES.items():
        recipe = preset.recipe
        layers = f"{recipe.architecture}" + (f" × {recipe.n_models}" if recipe.n_models > 1 else "")
        table.add_row(name, layers, recipe.optimizer, str(recipe.epochs), str(recipe.batch_size), preset.reported)
    _show(table)


@app.command()
def leaderboard() -> None:
    """Recipes side by side: what they reached over their seeds, and what the projects they reproduce report."""
    from rich.table import Table

    from models import leaderboard

    table = Table(box=None, pad_edge=False)
    for name in ("recipe", "data", "seeds", "accuracy (95 %)", "best", "reported", "log loss", "ECE", "corrupted"):
        table.add_column(name, no_wrap=name != "recipe")
    table.add_column("parameters", no_wrap=True, justify="right")
    table.add_column("seconds", no_wrap=True, justify="right")
    for row in leaderboard.read(_registry(load_settings())):
        table.add_row(*row.cells)
    _show(table)


@app.command()
def diff(run_a: str, run_b: str) -> None:
    """Why two runs differ (versions or run ids): data, code, recipe, environment, and a paired test of their answers."""
    from models import run_diff, runs

    settings = load_settings()
    registry = _registry(settings)
    a, b = runs.find(registry, run_a), runs.find(registry, run_b)
    print(run_diff.compare(registry, a, b, settings.datasets, _store(settings)).text)


@app.command()
def replay(run: Annotated[str, typer.Argument(help="A version or a run id, or the beginning of one.")]) -> None:
    """Train a run again from its recorded recipe, data and seed, and compare the weights."""
    from ops.flow_runs import flows_in_this_process

    with flows_in_this_process():
        from flows.replay import replay

        outcome = replay(run)
    raise SystemExit(0 if outcome.identical else 1)


@app.command()
def sweep(
    name: Annotated[str, typer.Option(help="The same name goes on where the last call ended or was killed.")] = "sweep",
    data: Data = "mnist",
    minutes: Annotated[float, typer.Option(min=0, help="For the trials of this call; the best is trained after.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Per trial, at most.")] = 20,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at once; unless set as many as fit.")] = None,
) -> None:
    """Search recipes under a time budget, side by side, and register the best as challenger; Ctrl-C keeps what is done."""
    from ops.flow_runs import flows_in_this_process
    from ops.processes import signals_as_interrupts

    with flows_in_this_process() as settings, signals_as_interrupts():
        from flows.sweep import sweep
        from flows.sweep_executor import Plan

        _print_version(settings, sweep(Plan(name=name, data=data, minutes=minutes, epochs=epochs, workers=workers)))


@app.command()
def predict(
    files: list[Path],
    direct: Annotated[bool, typer.Option("--direct", help="Load the champion instead of asking the endpoint.")] = False,
) -> None:
    """Classify pictures from disk."""
    from ops import predict

    refused = 0
    with (predict.champion if direct else predict.endpoint)(load_settings()) as ask:
        for file in files:
            try:
                print(f"{file}: {ask(file.read_bytes())}")
            except (ValueError, IsADirectoryError, FileNotFoundError) as error:
                refused += 1
                print(f"{file}: {error.strerror if isinstance(error, OSError) else error}")
    raise SystemExit(1 if refused else 0)


@app.command()
def traffic(
    n: Annotated[int, typer.Option("-n", min=1, help="How many requests.")] = 200,
    perturbation: Annotated[
        str, typer.Option(help="plain, shift, rotate, thicken, noise …; all are listed for a wrong one.")
    ] = "plain",
    amount: Annotated[float | None, typer.Option(help="How much: pixels, degrees, grey levels or a factor.")] = None,
    labels: Annotated[float, typer.Option(min=0, max=1, help="Share of the answers that get feedback.")] = 0.0,
    data: CurrentData = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Send real test digits, plain or perturbed, to the endpoint."""
    from tqdm import tqdm

    from ops import traffic as requests

    settings = load_settings()
    test = requests.test_images(data, settings)
    sending = requests.send(settings, requests.perturb(test, perturbation, amount), n, seed, labels)
    for sent in tqdm(sending, total=n, unit="request", disable=None):  # noqa: B007  # the last one is printed
        pass
    print(f"{sent.answers} answers, {sent.right / sent.answers:.1%} right, {sent.labelled} labelled")


@app.command()
def score(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Kaggle `test.csv`, `test.csv.gz`, or a .parquet.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="`submission.csv`, or a .parquet.")],
) -> None:
    """Answer a whole file straight from the champion; bad rows go to OUT's `.rejected.csv` with their reason."""
    if not source.is_file():
        raise ValueError(f"there is no file {source}; give a Kaggle test.csv, test.csv.gz or a .parquet")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {target.absolute().parent} to write {target.name} into; make it first")
    from ops.flow_runs import flows_in_this_process

    with flows_in_this_process():
        from flows.score import score

        count = score(source, target)
    raise SystemExit(0 if count.answered else 1)


@app.command()
def monitor(
    since: Annotated[
        str, typer.Option(help="How far back to look: 30m, 24h, 7d, or a moment; of past windows, how long each is.")
    ] = "24h",
    begin: Annotated[
        str | None, typer.Option("--from", help="Compute past windows again, from this day (UTC) …")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="… up to this one.")] = None,
    power: Annotated[bool, typer.Option("--power", help="What the detector would catch at the window's size.")] = False,
) -> None:
    """Report drift and accuracy of the latest answers against what the champion was tested on."""
    if power:
        _print_power(since)
        return
    if (begin is None) != (end is None):
        raise ValueError("--from and --to go together; give both, or neither for the latest answers")
    from ops.flow_runs import flows_in_this_process

    with flows_in_this_process():
        if begin and end:
            from flows.backfill import backfill

            backfill(begin, end, since)
        else:
            from flows.monitor import monitor

            monitor(since)


@app.command()
def audit(
    folder: Annotated[Path | None, typer.Argument(help="Unless given, `audit` in DIGITS_HOME.")] = None,
    since: Annotated[str, typer.Option(help="How far back to look: 30m, 24h, 7d, or a moment.")] = "7d",
    n: Annotated[int, typer.Option("-n", min=1, help="How many pictures may wait to be sorted.")] = 200,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Add those whose labels wait in quarantine: an auditor's word decides.")
    ] = False,
) -> None:
    """Write pictures of the audit sample into FOLDER; those moved into its sub-folders 0 to 9 are labelled by the next call."""
    from datetime import UTC, datetime

    from digits.storage import database, feedback
    from flows.monitor import begin
    from ops import audit

    settings = load_settings()
    folder, engine = folder or settings.home / "audit", database.connect(settings.database_url)
    labelled = audit.collect(engine, folder)
    answers = feedback.unlabelled_audit(engine, begin(since, datetime.now(UTC)))
    if quarantine:
        answers += feedback.quarantined(engine)
    waiting = audit.lay_out(answers, folder, n)
    print(f"labelled by the folders 0 to 9 of {folder}: {labelled}; pictures that wait beside these folders: {waiting}")
    if waiting:
        print("move each into the folder of its digit, and call this again")


def _show(table: Any) -> None:
    """A table on the terminal, or as wide as it is where there is none."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 160) if console.is_terminal else 10_000
    console.print(table)


def _print_power(since: str) -> None:
    from rich.table import Table

    from ops.detection_power import measure

    count, found = measure(since, load_settings())
    table = Table("perturbation", "description", "detected", "windows", box=None, pad_edge=False)
    for one in found:
        name = "none: false alarms" if one.perturbation == "none" else one.perturbation
        table.add_row(name, one.description, f"{one.rate:.1%}", str(one.windows))
    print(f"windows of {count} answers")
    _show(table)


def _registry(settings: Settings) -> Any:
    from models.registry_reader import RegistryReader

    RegistryReader(
        settings.mlflow_tracking_uri
    ).version()  # raises at once where MLflow does not answer; to import it takes 4 s
    from models.registry import Registry

    return Registry(settings.mlflow_tracking_uri)


def _store(settings: Settings) -> Any:
    from models.model_store import ModelStore

    return ModelStore(settings.mlflow_tracking_uri, settings.champions)


def _print_version(settings: Settings, version: str) -> None:
    print(f"digits v{version} is registered; make it the champion with `digits promote {version}`")
