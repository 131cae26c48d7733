"""`digits evaluations`: the sets of images that candidates are judged on."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from ops.commands.options import Reason
from ops.tables import format_time, print_table

if TYPE_CHECKING:  # loading them takes seconds, `digits --help` must not
    from digits.storage.ledger import Entry
    from models.evaluation_sets import EvaluationSet

app = typer.Typer(help="List, pin and retire the images that candidates are judged on.")


@app.callback(invoke_without_command=True)
def list_sets(context: typer.Context) -> None:
    """List the evaluation sets, the corruptions and what is retired."""
    if context.invoked_subcommand is not None:
        return
    from models import evaluation_sets

    sets, retired = _read()
    times = [(one, format_time(one.since)) for one in sets]
    rows = [(one.name, f"{len(one.split):,}", one.fingerprint, one.source, since, "–") for one, since in times]
    others = {name: "–" for name in evaluation_sets.names() if name.startswith("corruption ")}
    others |= {name: f"{format_time(entry.at)}: {entry.reason}" for name, entry in retired.items()}
    rows += [(name, "–", "–", "–", "–", retirement) for name, retirement in others.items()]
    print_table(("name", "images", "fingerprint", "from", "since (UTC)", "retired (UTC)"), rows)
    print("\nThe digits of a set are named like `anchor digit 7`.")


@app.command("pin")
def pin(
    source: Annotated[
        str, typer.Argument(help="Fingerprint of a stored data set, or a SOURCE as for `digits ingest`.")
    ],
    reason: Reason,
) -> None:
    """Make the test part of a data set the anchor, on which no later champion may lose."""
    from digits.data import datasets
    from flows.ingest import read_source
    from models import evaluation_sets
    from models.connections import Platform

    platform = Platform()
    if not re.fullmatch("[0-9a-f]{16}", source):
        dataset = read_source(platform, source)
        datasets.save(dataset, platform.datasets)
        source = dataset.fingerprint
    dataset = datasets.load(platform.datasets, source)
    evaluation_sets.pin(platform.engine, source, reason)
    print(f"the anchor is the test part of {source}: {len(dataset.test):,} images")


@app.command("retire")
def retire(
    name: Annotated[str, typer.Argument(help="Of a set, a digit of a set or a corruption, in quotes.")], reason: Reason
) -> None:
    """Exclude NAME from the judgement of candidates."""
    from models import evaluation_sets
    from models.connections import Platform

    evaluation_sets.retire(Platform().engine, name, reason)


@app.command("reinstate")
def reinstate(name: Annotated[str, typer.Argument(help="What was retired, in quotes.")], reason: Reason) -> None:
    """Include NAME in the judgement of candidates again."""
    from models import evaluation_sets
    from models.connections import Platform

    evaluation_sets.reinstate(Platform().engine, name, reason)


def _read() -> "tuple[list[EvaluationSet], dict[str, Entry]]":
    """The sets on which the next retraining would judge, and what is retired."""
    from digits.data import datasets
    from models import evaluation_sets
    from models.connections import Platform

    platform = Platform()
    storage, current = platform.datasets, datasets.current(platform.datasets)
    if current is None:
        raise LookupError("there is no data set yet; take one in with `digits ingest`")
    dataset, champion = datasets.load(storage, current), platform.models.registry.version()
    retired = evaluation_sets.retired(platform.engine)
    sets = evaluation_sets.assemble(storage, platform.models, platform.engine, dataset, champion, retired.keys())
    return sets, retired
