"""Prints tables on the terminal."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Console, RenderableType
from rich.table import Column, Table


def print_table(columns: Sequence[str | Column], rows: Iterable[Sequence[RenderableType]]) -> None:
    """Print rows as they are, without Rich's markup; an empty sequence of columns prints no header.

    A pipe or a file gets every row on one line.
    """
    # Names and reasons come from users: brackets and colons in them are neither markup nor emoji.
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, 160) if console.is_terminal else 10_000
    table = Table(*columns, box=None, pad_edge=False, show_header=bool(columns))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def format_time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "–"
