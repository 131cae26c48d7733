"""The space holds the known recipes, a study survives its process, and a trial trains as `fit` does."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from digits.data import sources
from digits.data.datasets import Dataset
from digits.images import Split
from models import search
from models.architectures import Dense
from models.recipes import ADAM, COMPACT, Recipe
from models.search import ATTEMPTS, FIRST_TRIALS, STARTS, Search
from models.training import Epoch, fit

PLACE = ("architecture", "optimizer", "learning_rate", "weight_decay", "schedule", "batch_size")


def open_search(folder: Path, epochs: int = 8) -> Search:
    return Search(folder, "quick", "0123456789abcdef", epochs)


def figures(accuracy: float, loss: float = 0.1) -> Epoch:
    return {"loss": loss, "accuracy": accuracy, "val_loss": loss, "val_accuracy": accuracy}


def train(searched: Search, curve: Sequence[float]) -> int:
    """A trial with these accuracies, to its end; its number."""
    number, _ = searched.propose()
    for epoch, accuracy in enumerate(curve):
        searched.goes_on(number, epoch, figures(accuracy))
    searched.complete(number, curve[-1], 1.0)
    return number


def test_a_sweep_begins_with_what_is_known(tmp_path: Path) -> None:
    searched = open_search(tmp_path)
    proposed = [searched.propose()[1] for _ in STARTS]
    for recipe, known in zip(proposed, (COMPACT, ADAM), strict=False):
        assert {name: getattr(recipe, name) for name in PLACE} == {name: getattr(known, name) for name in PLACE}
        assert recipe.augmentation is None
    assert proposed[2].architecture == Dense(hidden=(512, 512), batch_norm=True, dropout=0.15)
    assert proposed[2].augmentation is not None


def test_every_proposal_is_a_recipe_that_says_all_about_itself(tmp_path: Path) -> None:
    searched = open_search(tmp_path)
    for _ in range(20):
        number, recipe = searched.propose()
        assert recipe.name == "quick" and recipe.epochs == 8 and recipe.seed == number
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert (recipe.weight_decay > 0) == (recipe.optimizer == "adamw")
        assert (recipe.patience is None) == (recipe.schedule == "cosine")
        assert recipe.validation_fraction is None  # all trials are judged on the same images
        assert ("augmented" in search.describe(recipe)) == (recipe.augmentation is not None)
        searched.complete(number, 0.9, 1.0)


def test_a_recipe_in_a_line(tmp_path: Path) -> None:
    searched = open_search(tmp_path)
    lines = [search.describe(searched.propose()[1]) for _ in STARTS]
    assert lines[0] == "784-128-64-10, adam 0.001, batch 32"
    assert lines[2].startswith(
        "784-512-512-10, batch norm, dropout 0.15, adamw 0.002 cosine decay 0.01, batch 256, augmented × 1"
    )


def test_a_study_is_found_again_with_its_recipes(tmp_path: Path) -> None:
    before = open_search(tmp_path)
    recipes: dict[int, Recipe] = {}
    for accuracy in (0.91, 0.97, 0.97, 0.93):
        number, recipes[number] = before.propose()
        before.complete(number, accuracy, 2.5)
    after = open_search(tmp_path)
    assert [(one.number, one.accuracy) for one in after.results()] == [(1, 0.97), (2, 0.97), (3, 0.93), (0, 0.91)]
    assert {one.number: one.recipe for one in after.results()} == recipes
    assert {one.seconds for one in after.results()} == {2.5}


def test_only_trials_that_can_be_compared_share_a_study(tmp_path: Path) -> None:
    train(open_search(tmp_path, epochs=8), [0.9])
    assert not open_search(tmp_path, epochs=9).results()
    assert not Search(tmp_path, "quick", "fedcba9876543210", 8).results()
    assert not Search(tmp_path, "other", "0123456789abcdef", 8).results()
    assert open_search(tmp_path, epochs=8).begun() == 1


def test_what_a_dead_process_left_is_done_again_with_its_seed(tmp_path: Path) -> None:
    before = open_search(tmp_path)
    for _ in STARTS:
        train(before, [0.9])
    left = [before.propose()[1] for _ in range(2)]
    after = open_search(tmp_path)
    assert after.take_up() == 2
    assert after.take_up() == 0
    again = [after.propose() for _ in range(2)]
    assert [recipe for _, recipe in again] == left
    assert [number for number, _ in again] == [len(STARTS) + 2, len(STARTS) + 3]


def test_a_recipe_that_never_comes_to_its_end_is_given_up(tmp_path: Path) -> None:
    searched = open_search(tmp_path)
    for _ in STARTS:
        train(searched, [0.9])
    number, recipe = searched.propose()
    for _ in range(ATTEMPTS - 1):
        assert searched.set_aside(number)
        number, again = searched.propose()
        assert again == recipe
    assert not searched.set_aside(number)
    assert searched.propose()[1] != recipe


def test_a_failed_recipe_is_not_tried_again_unless_it_is_asked_for(tmp_path: Path) -> None:
    searched = open_search(tmp_path)
    number, recipe = searched.propose()
    searched.fail(number)
    assert searched.propose()[1].architecture != recipe.architecture  # the next of the known ones
    assert searched.queue_again(number)
    for _ in STARTS[2:]:
        searched.propose()
    assert searched.propose()[1] == recipe
    assert not searched.results()


def test_a_continued_sweep_does_not_propose_the_same_again(tmp_path: Path) -> None:
    first = open_search(tmp_path)
    before = {search.describe(first.propose()[1]) for _ in range(10)}
    second = open_search(tmp_path)
    assert not before & {search.describe(second.propose()[1]) for _ in range(7)}


def test_the_same_figures_in_the_same_order_give_the_same_proposals(tmp_path: Path) -> None:
    def proposals(folder: Path) -> list[Recipe]:
        searched = open_search(folder)
        recipes = []
        for step in range(13):
            number, recipe = searched.propose()
            recipes.append(recipe)
            searched.complete(number, 0.9 + recipe.learning_rate % 0.09 + step / 1000, 1.0)
        return recipes

    assert proposals(tmp_path / "a") == proposals(tmp_path / "b")


def test_it_learns_from_the_trials(tmp_path: Path) -> None:
    """Where distortion alone decides, proposals without it become rare."""
    searched = open_search(tmp_path)
    augmented = []
    for _ in range(30):
        number, recipe = searched.propose()
        augmented.append(recipe.augmentation is not None)
        searched.complete(number, 0.99 if recipe.augmentation else 0.9, 1.0)
    assert sum(augmented[-12:]) >= 9


def test_a_trial_below_the_median_is_pruned_after_a_quarter_of_its_epochs(tmp_path: Path) -> None:
    searched = open_search(tmp_path, epochs=8)
    good = [0.8, 0.9, 0.95, 0.96, 0.97, 0.97, 0.98, 0.98]
    for _ in range(FIRST_TRIALS):
        train(searched, good)
    poor, _ = searched.propose()
    assert [searched.goes_on(poor, epoch, figures(0.7)) for epoch in range(3)] == [True, True, False]
    searched.prune(poor)
    better, _ = searched.propose()
    assert all(searched.goes_on(better, epoch, figures(accuracy + 0.005)) for epoch, accuracy in enumerate(good))
    searched.complete(better, 0.985, 1.0)
    assert {one.number for one in searched.results()} == {*range(FIRST_TRIALS), better}


def test_the_first_trials_are_not_pruned_but_for_a_loss_that_is_no_number(tmp_path: Path) -> None:
    searched = open_search(tmp_path, epochs=8)
    for _ in range(FIRST_TRIALS - 1):
        train(searched, [0.9] * 8)
    first, _ = searched.propose()
    assert all(searched.goes_on(first, epoch, figures(0.1)) for epoch in range(7))
    assert not searched.goes_on(first, 7, figures(0.1, loss=math.nan))


def test_a_trial_in_its_last_epoch_is_not_pruned(tmp_path: Path) -> None:
    searched = open_search(tmp_path, epochs=2)
    for _ in range(FIRST_TRIALS):
        train(searched, [0.9, 0.9])
    last, _ = searched.propose()
    searched.goes_on(last, 0, figures(0.95))
    assert searched.goes_on(last, 1, figures(0.1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return sources.read("bundled", mnist=None, cache=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return COMPACT.model_copy(
        update={"epochs": 3, "validation_fraction": None, "architecture": Dense(hidden=(32,)), "batch_size": 64}
    )


def test_a_trial_trains_as_fit_does_without_a_look_at_the_test_images(dataset: Dataset, recipe: Recipe) -> None:
    trained = fit(recipe, dataset)
    told: list[tuple[int, Epoch]] = []
    blank = replace(dataset, test=Split(np.zeros_like(dataset.test.images[:1]), dataset.test.labels[:1]))
    tried = search.attempt(recipe, blank, lambda epoch, figures: told.append((epoch, figures)) is None)
    assert tried.history == trained.history
    assert told == list(enumerate(trained.history))
    assert tried.parameters == trained.metrics["parameters"] == 784 * 32 + 32 + 32 * 10 + 10
    assert tried.seconds > 0


def test_a_trial_stops_when_it_is_told_to(dataset: Dataset, recipe: Recipe) -> None:
    tried = search.attempt(recipe.model_copy(update={"epochs": 50}), dataset, lambda epoch, figures: epoch < 1)
    assert len(tried.history) == 2


def test_the_accuracy_is_that_of_the_weights_that_are_kept(recipe: Recipe) -> None:
    history = [figures(0.9), figures(0.95), figures(0.94)]
    assert search.accuracy(recipe, history) == 0.94
    assert search.accuracy(recipe.model_copy(update={"patience": 2}), history) == 0.95
