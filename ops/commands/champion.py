"""`digits promote`, `rollback` and `ledger`: which version is the champion."""

from typing import Annotated

import typer

from digits.settings import load_settings
from ops.commands.connections import open_database, open_registry, open_store
from ops.tables import format_time, print_table

Reason = Annotated[str, typer.Option("--why", help="The reason that the ledger records.")]


def promote(version: str, why: Reason = "by hand") -> None:
    """Make VERSION the champion, after checking that it loads and predicts."""
    settings = load_settings()
    registry = open_registry(settings)
    from models import promotion

    promotion.promote(registry, open_store(settings), open_database(settings), version, why)


def rollback(why: Reason = "by hand") -> None:
    """Make the previous champion the champion again."""
    settings = load_settings()
    registry = open_registry(settings)
    from models import promotion

    promotion.roll_back(registry, open_store(settings), open_database(settings), why)


def ledger() -> None:
    """List all promotions and rollbacks, oldest first."""
    from digits.storage import ledger

    entries = ledger.entries(open_database(load_settings()))
    if not entries:
        print("no version has been promoted yet")
        return
    print_table(
        ("when (UTC)", "what", "from", "to", "by", "why"),
        [(format_time(e.at), e.action, e.from_version or "–", e.to_version, e.by, e.why) for e in entries],
    )
