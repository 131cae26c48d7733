"""`digits ingest`, `train`, `retrain`, `sweep`, `replay` and `recipes`: training and its data."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from ops.commands.options import CurrentSource, Seed, Source
from ops.flow_runs import prepare, run_flow
from ops.tables import print_table


def ingest(data: Source = "mnist") -> None:
    """Read, check and store a data set, make it the current one, which the next retraining uses, and report labels that are probably wrong.

    The fingerprint is printed once the data set is stored; the report takes one to three more minutes for MNIST, and Ctrl-C skips it.
    """
    prepare()
    from digits.data import datasets
    from flows.check_labels import check
    from flows.ingest import set_source
    from models.connections import Platform

    platform = Platform()
    fingerprint = set_source(platform, data)
    print(fingerprint, flush=True)
    check(platform, datasets.load(platform.datasets, fingerprint), datetime.now(UTC))


def train(
    recipe: Annotated[str, typer.Option(help="Name of a recipe; see `digits recipes`.")] = "compact",
    data: CurrentSource = None,
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(min=1, show_default="the recipe's epochs")] = None,
) -> None:
    """Train a recipe once and register the model as a candidate."""
    from models import recipes

    changes = {"seed": seed} | ({"epochs": epochs} if epochs else {})
    chosen = recipes.find(recipe).model_copy(update=changes)
    _print_version(run_flow("train", chosen, data))


def retrain(
    recipe: Annotated[str | None, typer.Option(show_default="DIGITS_RECIPE")] = None,
    data: CurrentSource = None,
    seed: Seed = 0,
    reason: Annotated[str, typer.Option(help="Tag of the runs.")] = "manual",
    wait: Annotated[float, typer.Option(min=0, help="Seconds in which another retraining may end first.")] = 0,
    n_models: Annotated[
        int | None,
        typer.Option(min=1, help="Networks that are trained and averaged.", show_default="the recipe's number"),
    ] = None,
) -> None:
    """Ingest new data, train a candidate, and promote it if the gate finds it better than the champion."""
    run_flow("retrain", recipe, data, seed, reason, False, wait, n_models)


def sweep(
    name: Annotated[str, typer.Option(help="A name used before continues that sweep where it ended.")] = "sweep",
    data: Source = "mnist",
    minutes: Annotated[float, typer.Option(min=0, help="Time for the trials; the best recipe is trained after.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum epochs of a trial.")] = 20,
    workers: Annotated[int | None, typer.Option(min=1, help="Parallel trials; by default what fits.")] = None,
) -> None:
    """Search for a good recipe within a time budget, in parallel, and let the gate judge the best one; Ctrl-C keeps finished trials."""
    prepare()
    from flows.sweep import SweepPlan

    plan = SweepPlan(name=name, data=data, minutes=minutes, epochs=epochs, workers=workers)
    print(run_flow("sweep", plan))


def replay(run: Annotated[str, typer.Argument(help="A version, a run id, or the beginning of a run id.")]) -> None:
    """Train a run again from its recorded recipe, data and seed, and compare the weights."""
    raise SystemExit(0 if run_flow("replay", run).identical else 1)


def recipes() -> None:
    """List the recipes."""
    from models.recipes import RECIPES

    rows = []
    for name, preset in RECIPES.items():
        recipe = preset.recipe
        layers = f"{recipe.architecture}" + (f" × {recipe.n_models}" if recipe.n_models > 1 else "")
        rows.append((name, layers, recipe.optimizer, str(recipe.epochs), str(recipe.batch_size), preset.reported))
    print_table(("recipe", "layers", "optimiser", "epochs", "batch", "reported"), rows)


def _print_version(version: str) -> None:
    print(f"digits v{version} is registered; make it the champion with `digits promote {version}`")
