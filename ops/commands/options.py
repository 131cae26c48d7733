"""Command-line options that several commands share."""

from typing import Annotated

import typer

SOURCES = "`mnist`, `bundled`, or a path: .npz, Kaggle .csv[.gz], folder of IDX files, folder of pictures by digit"
Source = Annotated[str, typer.Option("--data", help=f"{SOURCES}.")]
CurrentSource = Annotated[str | None, typer.Option("--data", help=f"{SOURCES}.", show_default="the current data set")]
Seed = Annotated[int, typer.Option(min=0)]
Reason = Annotated[str, typer.Option("--reason", help="The reason that the ledger records.")]
Since = Annotated[str, typer.Option(help="Start of the time window: 30m, 24h, 7d, or a time in ISO format.")]
