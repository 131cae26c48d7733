"""The hyperparameter search of a sweep: its search space, its Optuna study, and the training of one trial."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from digits.data.datasets import Dataset
from models.architectures import Dense
from models.augmentation import Augmentation
from models.training import EpochMetrics, Network, Recipe

# Raise it when `suggest_recipe` or `Recipe` changes: trials of different search spaces belong to different studies.
SPACE_VERSION = 1
# In epochs, with a constant learning rate only: a cosine schedule reaches its best accuracy in the last epochs.
PATIENCE = 5
# Trials that are never pruned: the median of fewer is unreliable.
STARTUP_TRIALS = 5
# A trial that was interrupted this often does not fit into the time or kills its workers.
MAX_ATTEMPTS = 3
# Around the learning rates that are known to train.
LEARNING_RATES = {"sgd": (1e-2, 1.0), "adam": (3e-4, 1e-2), "adamw": (3e-4, 1e-2)}

_ADAM = {
    **{"layers": 2, "batch_norm": False, "dropout": 0.0, "augmentation": False},
    **{"optimizer": "adam", "adam_rate": 1e-3, "schedule": "constant"},
}
INITIAL_PARAMS: tuple[dict[str, Any], ...] = (
    {**_ADAM, "log2_width_1": 7, "log2_width_2": 6, "log2_batch_size": 5},
    {**_ADAM, "log2_width_1": 9, "log2_width_2": 9, "log2_batch_size": 7},
    {
        **{"layers": 2, "log2_width_1": 9, "log2_width_2": 9, "batch_norm": True, "dropout": 0.15},
        **{"optimizer": "adamw", "adamw_rate": 2e-3, "weight_decay": 1e-2, "schedule": "cosine", "log2_batch_size": 8},
        **{"augmentation": True, "augmentation_strength": 1.0, "augmentation_final_share": 1.0},
    },
)
"""The first trials of every study: the recipes `compact` and `adam`, and `augmented` at half its width."""


def open_study(folder: Path, name: str, fingerprint: str, epochs: int) -> optuna.Study:
    """The study of these trials in `trials.db` in the folder; a new one starts with `INITIAL_PARAMS` enqueued."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # the lock file pins Optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=RDBStorage(f"sqlite:///{folder}/trials.db", engine_kwargs={"connect_args": {"timeout": 60}}),
        study_name=f"{name}-{fingerprint}-{epochs}-epochs-space-{SPACE_VERSION}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=epochs // 4),
    )
    n_trials = len(study.trials)
    if not n_trials:
        for params in INITIAL_PARAMS:
            study.enqueue_trial(params)
    # A resumed study needs another seed, or it suggests the same recipes again.
    study.sampler = optuna.samplers.TPESampler(seed=n_trials, multivariate=True, group=True)
    return study


def ask(study: optuna.Study, name: str, epochs: int) -> tuple[Trial, Recipe]:
    """The next trial and its recipe, which a retried trial has from its first attempt, seed included."""
    trial = study.ask()
    recipe = recipe_of(trial) if "recipe" in trial.user_attrs else suggest_recipe(trial, name, epochs)
    trial.set_user_attr("recipe", recipe.model_dump_json())
    return trial, recipe


def recipe_of(trial: Trial | FrozenTrial) -> Recipe:
    """The recipe that `ask` stored with the trial."""
    return Recipe.model_validate_json(trial.user_attrs["recipe"])


def suggest_recipe(trial: Trial, name: str, epochs: int) -> Recipe:
    """A recipe from the search space, with the trial's number as its seed."""
    layers = range(1, trial.suggest_int("layers", 1, 3) + 1)
    optimizer: Any = trial.suggest_categorical("optimizer", tuple(LEARNING_RATES))
    schedule: Any = trial.suggest_categorical("schedule", ("constant", "cosine"))
    rate = trial.suggest_float(f"{optimizer}_rate", *LEARNING_RATES[optimizer], log=True)
    decay = trial.suggest_float("weight_decay", 1e-3, 1e-1, log=True) if optimizer == "adamw" else 0.0
    return Recipe(
        name=name,
        architecture=Dense(
            hidden=tuple(2 ** trial.suggest_int(f"log2_width_{layer}", 6, 10) for layer in layers),
            batch_norm=trial.suggest_categorical("batch_norm", (False, True)),
            dropout=round(trial.suggest_float("dropout", 0.0, 0.5, step=0.05), 2),
        ),
        optimizer=optimizer,
        learning_rate=float(f"{rate:.3g}"),
        weight_decay=float(f"{decay:.3g}"),
        schedule=schedule,
        batch_size=2 ** trial.suggest_int("log2_batch_size", 5, 9),
        augmentation=_suggest_augmentation(trial),
        epochs=epochs,
        patience=PATIENCE if schedule == "constant" else None,
        seed=trial.number,
    )


def _suggest_augmentation(trial: Trial) -> Augmentation | None:
    """The default ranges times a strength, and the share of them that is left in the last epoch."""
    if not trial.suggest_categorical("augmentation", (False, True)):
        return None
    strength = trial.suggest_float("augmentation_strength", 0.25, 1.25, step=0.25)
    final_share = trial.suggest_float("augmentation_final_share", 0.25, 1.0, step=0.25)
    ranges = Augmentation().model_dump(exclude={"elastic_sigma_pixels", "final_share"})
    return Augmentation(**{name: round(value * strength, 4) for name, value in ranges.items()}, final_share=final_share)


def summarize(recipe: Recipe) -> str:
    """Such as `784-512-10, batch norm, dropout 0.15, adamw 0.002 cosine, decay 0.01, batch 256, augmentation`."""
    optimizer = f"{recipe.optimizer} {recipe.learning_rate:g} {recipe.schedule}"
    decay = f", decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    augmentation = ", augmentation" if recipe.augmentation else ""
    return f"{recipe.architecture}, {optimizer}{decay}, batch {recipe.batch_size}{augmentation}"


def retry(study: optuna.Study, number: int) -> bool:
    """Fail a running trial and enqueue it again with its recipe. Returns False after `MAX_ATTEMPTS`."""
    study.tell(number, state=TrialState.FAIL)
    trial = study.trials[number]
    callback = RetryHeartbeatStaleTrialCallback(max_retry=MAX_ATTEMPTS - 1)
    attempts = 1 + len(callback.retry_history(trial))
    callback(study, trial)
    return attempts < MAX_ATTEMPTS


def retry_running(study: optuna.Study) -> int:
    """Fail and enqueue again the running trials, which a killed process left behind. Returns their number."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        retry(study, trial.number)
    return len(running)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials by validation accuracy, the best first and of equals the earlier."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (-trial.values[0], trial.number))


@dataclass(frozen=True)
class TrainedTrial:
    """The training of one trial, complete or stopped early."""

    history: list[EpochMetrics]
    accuracy: float  # on the validation images, of the weights that training keeps
    metrics: dict[str, float]
    stopped: bool


def train(recipe: Recipe, dataset: Dataset, proceed: Callable[[int, EpochMetrics], bool]) -> TrainedTrial:
    """Train while the loss is finite and `proceed` returns True after each epoch; the test images are not used."""
    history: list[EpochMetrics] = []
    stopped = False
    network = Network(recipe, dataset)
    for epoch, metrics in enumerate(network.epochs()):
        history.append(metrics)
        stopped = not (proceed(epoch, metrics) and math.isfinite(metrics["train_loss"]))
        if stopped:
            break
    accuracies = [metrics["val_accuracy"] for metrics in history]
    accuracy = max(accuracies) if recipe.patience else accuracies[-1]
    costs = {"train_seconds": network.seconds, "parameters": network.model.count_params()}
    return TrainedTrial(history, accuracy, {**costs, "validation_accuracy": accuracy}, stopped)
