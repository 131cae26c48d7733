"""`digits leaderboard` and `diff`: comparisons of runs."""

from rich.table import Column

from digits.settings import load_settings
from ops.commands.connections import open_registry, open_store
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

    print_table(COLUMNS, [row.cells for row in leaderboard.read(open_registry(load_settings()))])


def diff(run_a: str, run_b: str) -> None:
    """Explain how two runs (versions or run ids) differ: data, code, recipe, environment, and a paired test of their predictions."""
    from models import run_diff, runs

    settings = load_settings()
    registry = open_registry(settings)
    a, b = runs.find(registry, run_a), runs.find(registry, run_b)
    print(run_diff.compare(registry, a, b, settings.datasets, open_store(settings)).text)
