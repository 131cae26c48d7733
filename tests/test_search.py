"""The search space contains the known recipes, a study outlives its process, and a trial trains as `fit` does."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna import Study, Trial

from digits.data import sources
from digits.data.datasets import Dataset
from digits.images import Split
from models import search
from models.recipes import ADAM, AUGMENTED, COMPACT
from models.search import INITIAL_PARAMS, MAX_ATTEMPTS, STARTUP_TRIALS
from models.training import EpochMetrics, Recipe, fit

EPOCHS = 8


def open_study(folder: Path, epochs: int = EPOCHS) -> Study:
    return search.open_study(folder, "quick", "0123456789abcdef", epochs)


def ask(study: Study) -> tuple[Trial, Recipe]:
    return search.ask(study, "quick", EPOCHS)


def complete(study: Study, curve: Sequence[float]) -> int:
    """Complete a trial with these accuracies; its number."""
    trial, _ = ask(study)
    for epoch, accuracy in enumerate(curve):
        trial.report(accuracy, epoch)
    study.tell(trial, curve[-1])
    return trial.number


def test_the_first_trials_are_known_recipes(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    recipes = [ask(study)[1] for _ in INITIAL_PARAMS]
    for recipe, known in zip(recipes, (COMPACT, ADAM), strict=False):
        same = ("architecture", "optimizer", "learning_rate", "weight_decay", "schedule", "batch_size", "augmentation")
        assert {name: getattr(recipe, name) for name in same} == {name: getattr(known, name) for name in same}
    assert recipes[2].architecture.hidden == (512, 512)  # type: ignore[union-attr]
    assert recipes[2].augmentation == AUGMENTED.augmentation.model_copy(update={"final_share": 1.0})  # type: ignore[union-attr]


def test_every_suggestion_is_a_complete_recipe(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in range(20):
        trial, recipe = ask(study)
        assert recipe.name == "quick" and recipe.epochs == EPOCHS and recipe.seed == trial.number
        assert search.recipe_of(trial) == recipe
        assert (recipe.weight_decay > 0) == (recipe.optimizer == "adamw")
        assert (recipe.patience is None) == (recipe.schedule == "cosine")
        assert recipe.validation_fraction is None  # all trials are judged on the same images
        assert ("augmentation" in search.summarize(recipe)) == (recipe.augmentation is not None)
        study.tell(trial, 0.9)


def test_a_summary_is_one_line(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    lines = [search.summarize(ask(study)[1]) for _ in INITIAL_PARAMS]
    assert lines[0] == "784-128-64-10, adam 0.001 constant, batch 32"
    assert lines[2] == (
        "784-512-512-10, batch norm, dropout 0.15, adamw 0.002 cosine, decay 0.01, batch 256, augmentation"
    )


def test_a_study_is_resumed_with_its_recipes(tmp_path: Path) -> None:
    before = open_study(tmp_path)
    recipes: dict[int, Recipe] = {}
    for accuracy in (0.91, 0.97, 0.97, 0.93):
        trial, recipes[trial.number] = ask(before)
        before.tell(trial, accuracy)
    ranked = search.ranked(open_study(tmp_path))
    assert [(trial.number, trial.value) for trial in ranked] == [(1, 0.97), (2, 0.97), (3, 0.93), (0, 0.91)]
    assert {trial.number: search.recipe_of(trial) for trial in ranked} == recipes


def test_only_comparable_trials_share_a_study(tmp_path: Path) -> None:
    complete(open_study(tmp_path, epochs=8), [0.9])
    assert not search.ranked(open_study(tmp_path, epochs=9))
    assert not search.ranked(search.open_study(tmp_path, "quick", "fedcba9876543210", 8))
    assert not search.ranked(search.open_study(tmp_path, "other", "0123456789abcdef", 8))
    assert len(search.ranked(open_study(tmp_path, epochs=8))) == 1


def test_running_trials_of_a_killed_process_are_retried_with_their_seed(tmp_path: Path) -> None:
    before = open_study(tmp_path)
    for _ in INITIAL_PARAMS:
        complete(before, [0.9])
    running = [ask(before)[1] for _ in range(2)]
    after = open_study(tmp_path)
    assert search.retry_running(after) == 2
    assert search.retry_running(after) == 0
    retried = [ask(after) for _ in range(2)]
    assert [recipe for _, recipe in retried] == running
    assert [trial.number for trial, _ in retried] == [len(INITIAL_PARAMS) + 2, len(INITIAL_PARAMS) + 3]


def test_an_initial_trial_killed_before_its_recipe_was_stored_is_retried(tmp_path: Path) -> None:
    open_study(tmp_path).ask()
    study = open_study(tmp_path)
    assert search.retry_running(study) == 1
    architectures = [ask(study)[1].architecture for _ in INITIAL_PARAMS]
    assert architectures[-1] == COMPACT.architecture  # at the end of the queue


def test_a_recipe_is_given_up_after_three_attempts(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in INITIAL_PARAMS:
        complete(study, [0.9])
    trial, recipe = ask(study)
    for _ in range(MAX_ATTEMPTS - 1):
        assert search.retry(study, trial.number)
        trial, again = ask(study)
        assert again == recipe
    assert not search.retry(study, trial.number)
    assert ask(study)[1] != recipe


def test_a_failed_recipe_is_retried_after_those_that_are_enqueued(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial, recipe = ask(study)
    assert search.retry(study, trial.number)
    assert ask(study)[1].architecture != recipe.architecture  # the next of the initial trials
    for _ in INITIAL_PARAMS[2:]:
        ask(study)
    assert ask(study)[1] == recipe
    assert not search.ranked(study)


def test_a_resumed_study_does_not_suggest_the_same_again(tmp_path: Path) -> None:
    first = open_study(tmp_path)
    before = {search.summarize(ask(first)[1]) for _ in range(10)}
    second = open_study(tmp_path)
    assert not before & {search.summarize(ask(second)[1]) for _ in range(7)}


def test_the_same_accuracies_in_the_same_order_give_the_same_suggestions(tmp_path: Path) -> None:
    def suggestions(folder: Path) -> list[Recipe]:
        study = open_study(folder)
        recipes = []
        for step in range(13):
            trial, recipe = ask(study)
            recipes.append(recipe)
            study.tell(trial, 0.9 + recipe.learning_rate % 0.09 + step / 1000)
        return recipes

    assert suggestions(tmp_path / "a") == suggestions(tmp_path / "b")


def test_it_learns_from_the_trials(tmp_path: Path) -> None:
    """Where augmentation alone decides, suggestions without it become rare."""
    study = open_study(tmp_path)
    augmented = []
    for _ in range(30):
        trial, recipe = ask(study)
        augmented.append(recipe.augmentation is not None)
        study.tell(trial, 0.99 if recipe.augmentation else 0.9)
    assert sum(augmented[-12:]) >= 9


def test_a_trial_below_the_median_is_pruned_after_a_quarter_of_its_epochs(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    good = [0.8, 0.9, 0.95, 0.96, 0.97, 0.97, 0.98, 0.98]
    for _ in range(STARTUP_TRIALS):
        complete(study, good)
    poor, _ = ask(study)
    assert [prunes(poor, epoch, 0.7) for epoch in range(3)] == [False, False, True]
    better, _ = ask(study)
    assert not any(prunes(better, epoch, accuracy + 0.005) for epoch, accuracy in enumerate(good))


def test_the_first_trials_are_not_pruned(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in range(STARTUP_TRIALS - 1):
        complete(study, [0.9] * EPOCHS)
    trial, _ = ask(study)
    assert not any(prunes(trial, epoch, 0.1) for epoch in range(EPOCHS))


def prunes(trial: Trial, epoch: int, accuracy: float) -> bool:
    trial.report(accuracy, epoch)
    return trial.should_prune()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return sources.read("bundled", mnist=None, cache=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    architecture = COMPACT.architecture.model_copy(update={"hidden": (32,)})
    small = {"architecture": architecture, "epochs": 3, "validation_fraction": None, "batch_size": 64}
    return COMPACT.model_copy(update=small)


def test_a_trial_trains_as_fit_does_without_the_test_images(dataset: Dataset, recipe: Recipe) -> None:
    fitted = fit(recipe, dataset)
    reported: list[tuple[int, EpochMetrics]] = []
    blank = replace(dataset, test=Split(np.zeros_like(dataset.test.images[:1]), dataset.test.labels[:1]))
    trained = search.train(recipe, blank, lambda epoch, metrics: reported.append((epoch, metrics)) is None)
    assert trained.history == fitted.history
    assert reported == list(enumerate(fitted.history))
    assert trained.accuracy == fitted.history[-1]["val_accuracy"]
    assert trained.metrics["parameters"] == fitted.metrics["parameters"] == 784 * 32 + 32 + 32 * 10 + 10
    assert trained.metrics["train_seconds"] > 0 and not trained.stopped


def test_a_trial_stops_on_request(dataset: Dataset, recipe: Recipe) -> None:
    trained = search.train(recipe.model_copy(update={"epochs": 50}), dataset, lambda epoch, metrics: epoch < 1)
    assert len(trained.history) == 2 and trained.stopped


def test_a_diverging_trial_stops(dataset: Dataset, recipe: Recipe) -> None:
    diverging = recipe.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30})
    trained = search.train(diverging, dataset, lambda epoch, metrics: True)
    assert len(trained.history) == 1 and trained.stopped
    assert not math.isfinite(trained.history[0]["train_loss"])


def test_with_patience_the_accuracy_is_the_best(dataset: Dataset, recipe: Recipe) -> None:
    impatient = recipe.model_copy(update={"patience": 1, "epochs": 50})
    trained = search.train(impatient, dataset, lambda epoch, metrics: True)
    accuracies = [metrics["val_accuracy"] for metrics in trained.history]
    assert trained.accuracy == max(accuracies) == accuracies[-2]  # the epoch before the one without an improvement
    assert len(accuracies) < 50 and not trained.stopped
