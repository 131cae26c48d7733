"""`digits promote`, `rollback` and `ledger`: which version is the champion."""

from typing import Annotated

import typer

from ops.tables import format_time, print_table

Reason = Annotated[str, typer.Option("--why", help="The reason that the ledger records.")]


def promote(version: str, why: Reason = "by hand") -> None:
    """Make VERSION the champion, after checking that it loads and predicts."""
    from models import promotion
    from ops.commands.connections import connect

    platform = connect()
    promotion.promote(platform.registry, platform.models, platform.engine, version, why)


def rollback(why: Reason = "by hand") -> None:
    """Make the previous champion the champion again."""
    from models import promotion
    from ops.commands.connections import connect

    platform = connect()
    promotion.roll_back(platform.registry, platform.models, platform.engine, why)


def ledger() -> None:
    """List all promotions and rollbacks, oldest first."""
    from digits.storage import ledger
    from flows.connections import Platform

    entries = ledger.entries(Platform().engine)
    if not entries:
        print("no version has been promoted yet")
        return
    print_table(
        ("when (UTC)", "what", "from", "to", "by", "why"),
        [(format_time(e.at), e.action, e.from_version or "–", e.to_version, e.by, e.why) for e in entries],
    )
