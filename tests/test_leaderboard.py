"""The leaderboard puts each recipe on its data set beside what is reported, and counts a seed once."""

from datetime import UTC, datetime

import pytest
from conftest import Runs

from models import leaderboard
from models.architectures import Convolutional, Dense
from models.leaderboard import HeldOut
from models.recipes import AUGMENTED, COMPACT, RECIPES, SIGMOID
from models.registry import RegistryWriter, flatten
from models.runs import Run
from models.training import Recipe

HELD_OUT = {"d1": HeldOut("mnist", 10_000), "d2": HeldOut("bundled", 270)}


def run(recipe: Recipe, accuracy: float, dataset: str = "d1", **metrics: float) -> Run:
    return Run(
        id="0",
        version=None,
        status="FINISHED",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        tags={"dataset": dataset, "recipe": recipe.name},
        params={name: str(value) for name, value in flatten(recipe.model_dump(mode="json")).items()},
        metrics={"test_accuracy": accuracy, **metrics},
    )


def seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"seed": seed})


def test_seeds_are_averaged_and_each_counts_once() -> None:
    found = [run(COMPACT, 0.98, train_seconds=4), run(seeded(COMPACT, 1), 0.97, train_seconds=6), run(COMPACT, 0.5)]
    row = leaderboard.rows(found, HELD_OUT)[0]
    assert (row.recipe, row.seeds, row.reported) == ("compact", (0, 1), "97.65 %")
    assert row.accuracy and row.best
    assert row.accuracy.value == pytest.approx(0.975) and row.best.value == pytest.approx(0.98)
    assert row.train_seconds == pytest.approx(5)
    # Wilson's interval of 9,750 in 10,000, by the formula
    z, n, p = 1.959964, 10_000, 0.975
    centre = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    assert (row.accuracy.low, row.accuracy.high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_the_data_set_used_last_comes_first_and_on_it_the_most_accurate() -> None:
    found = [run(SIGMOID, 0.92, "d2"), run(COMPACT, 0.98), run(SIGMOID, 0.93), run(COMPACT, 0.95, "d2")]
    rows = leaderboard.rows(found, HELD_OUT)
    assert [(row.source, row.recipe) for row in rows[:4]] == [
        ("bundled", "compact"),
        ("bundled", "sigmoid"),
        ("mnist", "compact"),
        ("mnist", "sigmoid"),
    ]


def test_every_recipe_is_there_with_what_is_reported() -> None:
    rows = leaderboard.rows([run(COMPACT, 0.5)], HELD_OUT)
    assert sorted(row.recipe for row in rows) == sorted(RECIPES)
    assert {row.recipe: row.reported for row in rows} == {name: preset.reported for name, preset in RECIPES.items()}
    shown = {row.recipe: row.cells for row in rows}
    assert "50.00 % [49.02, 50.98]" in shown["compact"] and "97.65 %" in shown["compact"]  # lower, and shown
    assert "not trained" in shown["sigmoid"]


def test_a_changed_recipe_is_another_row() -> None:
    other = AUGMENTED.augmentation.model_copy(update={"shear": 0.0}) if AUGMENTED.augmentation else None
    found = [
        run(COMPACT.model_copy(update={"epochs": 3}), 0.9),
        run(COMPACT, 0.9),
        run(AUGMENTED.model_copy(update={"augmentation": None}), 0.9),
        run(AUGMENTED.model_copy(update={"augmentation": other}), 0.9),
        run(COMPACT.model_copy(update={"augmentation": other}), 0.9),
        run(Recipe(name="found", architecture=Dense(hidden=(300,)), epochs=4, learning_rate=0.002), 0.9),
        run(Recipe(name="found", architecture=Convolutional(dense=64), epochs=4), 0.9),
    ]
    names = [row.recipe for row in leaderboard.rows(found, HELD_OUT)[:7]]
    assert sorted(names) == sorted(
        [
            "compact (epochs 3)",
            "compact",
            "augmented (not augmented)",
            "augmented (augmentation.shear 0.0)",
            "compact (augmented)",
            "found (hidden [300], learning_rate 0.002, epochs 4)",
            "found (filters [32, 32, 64, 64, 64], kernels [3, 5, 3, 3, 5], strides [1, 2, 1, 1, 2], dense 64, epochs 4)",
        ]
    )


def test_real_runs(trained_runs: Runs) -> None:
    rows = [row for row in leaderboard.read(RegistryWriter(trained_runs.uri)) if row.recipe == "sigmoid (epochs 2)"]
    assert sorted(row.seeds for row in rows) == [(0,), (0, 1)]  # one label apart is another data set
    for row in rows:
        assert row.source == "bundled" and row.parameters == 7850
        assert row.accuracy and 0.5 < row.accuracy.low < row.accuracy.value < row.accuracy.high < 1
        assert row.corruption_accuracy and 0 < row.corruption_accuracy < row.accuracy.value
        assert row.test_log_loss and row.test_ece and row.train_seconds
        assert row.reported == "82 %, 92.5 %"
        assert len(row.cells) == 11 and "–" not in row.cells
