"""`digits promote`, `approve`, `rollback`, `ledger`, `leaderboard`, `diff` and `replay-traffic`: versions and the runs that trained them."""

from typing import Annotated

import typer
from rich.table import Column

from ops.commands.options import Reason, Since
from ops.flow_runs import prepare
from ops.tables import format_time, print_table

LEADERBOARD: list[str | Column] = [
    "recipe",
    *(Column(name, no_wrap=True) for name in ("data", "seeds", "accuracy (95 %)", "best", "reported")),
    *(Column(name, no_wrap=True) for name in ("log loss", "ECE", "corrupted")),
    *(Column(name, no_wrap=True, justify="right") for name in ("parameters", "seconds")),
]


def promote(version: str, reason: Reason = "manual") -> None:
    """Make VERSION the champion, after checking that it loads and predicts."""
    from flows import promote
    from models.connections import Platform

    promote.by_hand(Platform(), version, reason)


def approve(
    version: Annotated[str | None, typer.Argument(show_default="list what waits")] = None,
    decline: Annotated[bool, typer.Option("--decline", help="Hold the version instead.")] = False,
    reason: Reason = "manual",
) -> None:
    """Promote VERSION, which waits for approval; without it, list what waits, and why (DIGITS_PROMOTION=ask)."""
    prepare()
    from digits.storage import ledger
    from flows import approve
    from models.connections import Platform
    from models.registry_reader import version_number

    platform = Platform()
    if version is None:
        rows, columns = approve.waiting(platform), ("version", "instead of", "since (UTC)", "until (UTC)", "because")
        print_table(columns, rows) if rows else print("no version waits for approval")
        return
    print(approve.decide(platform, version_number(version), not decline, ledger.user(), reason))


def rollback(reason: Reason = "manual") -> None:
    """Make the previous champion the champion again."""
    from models import promotion
    from models.connections import Platform

    platform = Platform()
    promotion.roll_back(platform, reason)


def ledger() -> None:
    """List all decisions about versions and evaluation, oldest first."""
    from digits.storage import ledger
    from models.connections import Platform

    columns = ("when (UTC)", "what", "of", "from", "to", "by", "reason")
    entries = ledger.entries(Platform().engine)
    rows = [(format_time(e.at), e.action, e.subject, e.before or "–", e.after or "–", e.by, e.reason) for e in entries]
    print_table(columns, rows) if rows else print("nothing has been decided yet")


def leaderboard() -> None:
    """Compare recipes by the accuracy over their seeds with what the projects that they reproduce report."""
    from models import leaderboard
    from models.connections import Platform

    print_table(LEADERBOARD, [row.cells for row in leaderboard.read(Platform().registry)])


def diff(run_a: str, run_b: str) -> None:
    """Explain how two runs (versions or run ids) differ: data, code, recipe, environment, and a paired test of their predictions."""
    from models import run_diff, runs
    from models.connections import Platform

    platform = Platform()
    a, b = runs.find(platform.registry, run_a), runs.find(platform.registry, run_b)
    print(run_diff.compare(platform.registry, a, b, platform.datasets, platform.models).text)


def replay_traffic(version: str, since: Since = "7d") -> None:
    """Compare VERSION with the champion on the logged, labelled traffic that neither was trained on."""
    from datetime import UTC, datetime

    from models import traffic_replay
    from models.connections import Platform
    from monitoring.windows import parse_since

    platform = Platform()
    found = traffic_replay.replay(platform.models, platform.engine, version, parse_since(since, datetime.now(UTC)))
    columns = ("labels", "images", f"v{found.version} right (95 %)", f"champion v{found.champion} right (95 %)")
    only = (f"only v{found.version}", f"only v{found.champion}", "p (by client)")
    rows = []
    for one in found.comparisons:
        sample = one.sample
        counts = (str(sample.gained), str(sample.lost), f"{one.p_value:.2g}")
        rows.append((sample.name, str(len(sample.labels)), str(one.version), str(one.champion), *counts))
    print_table((*columns, *only), rows)
    left_out = [f"{count} that v{one} was trained on" for one, count in found.trained_on.items()]
    print(f"left out: {', '.join(left_out)}, {found.repeated} that came again later")
