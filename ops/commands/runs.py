"""`digits leaderboard` and `diff`: comparisons of runs."""

from rich.table import Column

from ops.tables import print_table

COLUMNS: list[str | Column] = [
    "recipe",
    *(Column(name, no_wrap=True) for name in ("data", "seeds", "accuracy (95 %)", "best", "reported")),
    *(Column(name, no_wrap=True) for name in ("log loss", "ECE", "corrupted")),
    *(Column(name, no_wrap=True, justify="right") for name in ("parameters", "seconds")),
]


def leaderboard() -> None:
    """Compare recipes by the accuracy over their seeds with what the projects that they reproduce report."""
    from models import leaderboard
    from ops.commands.connections import connect

    print_table(COLUMNS, [row.cells for row in leaderboard.read(connect().registry)])


def diff(run_a: str, run_b: str) -> None:
    """Explain how two runs (versions or run ids) differ: data, code, recipe, environment, and a paired test of their predictions."""
    from models import run_diff, runs
    from ops.commands.connections import connect

    platform = connect()
    a, b = runs.find(platform.registry, run_a), runs.find(platform.registry, run_b)
    print(run_diff.compare(platform.registry, a, b, platform.datasets, platform.models).text)
