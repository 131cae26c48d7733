"""The search of a sweep: the space of recipes, what one trial does, and the study that remembers every trial."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

from digits.data.datasets import Dataset
from models.architectures import Dense
from models.recipes import Augmentation, Recipe
from models.training import Epoch, Network

SPACE = 1  # counted up when `propose` changes: trials of different spaces are not compared
PATIENCE = 5  # epochs; with a constant learning rate only, because the cosine's last epochs are its best
FIRST_TRIALS = 5  # that are never pruned: a median of fewer says little
ATTEMPTS = 3  # of the same recipe, before what cuts it off is taken to be its own fault
RATES = {"sgd": (1e-2, 1.0), "adam": (3e-4, 1e-2), "adamw": (3e-4, 1e-2)}  # around the recipes that are known to train
USUAL = Augmentation()
RANGES = ("rotation_radians", "scale", "shear", "shift_pixels", "elastic_pixels", "thickness")

STARTS: tuple[dict[str, Any], ...] = (
    {
        **{"layers": 2, "log2_width_1": 7, "log2_width_2": 6, "batch_norm": False, "dropout": 0.0},
        **{"optimizer": "adam", "adam_rate": 1e-3, "schedule": "constant", "log2_batch_size": 5, "augmentation": False},
    },
    {
        **{"layers": 2, "log2_width_1": 9, "log2_width_2": 9, "batch_norm": False, "dropout": 0.0},
        **{"optimizer": "adam", "adam_rate": 1e-3, "schedule": "constant", "log2_batch_size": 7, "augmentation": False},
    },
    {
        **{"layers": 2, "log2_width_1": 9, "log2_width_2": 9, "batch_norm": True, "dropout": 0.15},
        **{"optimizer": "adamw", "adamw_rate": 2e-3, "weight_decay": 1e-2, "schedule": "cosine"},
        **{"log2_batch_size": 8, "augmentation": True, "distortion_strength": 1.0, "distortion_final_share": 1.0},
    },
)
"""Where every sweep begins: the recipes `compact` and `adam`, and `distorted` at half its width."""


@dataclass(frozen=True)
class Attempt:
    """What came of training one recipe, to its end or until it was told to stop."""

    history: list[Epoch]
    seconds: float  # in the epochs, compilation included
    parameters: int


@dataclass(frozen=True)
class TrialResult:
    """A trial that was trained to its end."""

    number: int
    recipe: Recipe
    accuracy: float  # on the validation images
    seconds: float


# The space


def propose(trial: BaseTrial, name: str, epochs: int) -> Recipe:
    """The recipe of the trial; its seed is the trial's number, unless it does again what another trial began."""
    layers = trial.suggest_int("layers", 1, 3)
    optimizer: Literal["sgd", "adam", "adamw"] = trial.suggest_categorical("optimizer", tuple(RATES))  # type: ignore[assignment]  # one of these three
    schedule: Literal["constant", "cosine"] = trial.suggest_categorical("schedule", ("constant", "cosine"))  # type: ignore[assignment]  # one of these two
    return Recipe(
        name=name,
        architecture=Dense(
            hidden=tuple(2 ** trial.suggest_int(f"log2_width_{layer}", 6, 10) for layer in range(1, layers + 1)),
            batch_norm=trial.suggest_categorical("batch_norm", (False, True)),
            dropout=round(trial.suggest_float("dropout", 0.0, 0.5, step=0.05), 2),
        ),
        optimizer=optimizer,
        learning_rate=_short(trial.suggest_float(f"{optimizer}_rate", *RATES[optimizer], log=True)),
        weight_decay=_short(trial.suggest_float("weight_decay", 1e-3, 1e-1, log=True)) if optimizer == "adamw" else 0.0,
        schedule=schedule,
        batch_size=2 ** trial.suggest_int("log2_batch_size", 5, 9),
        augmentation=_augmentation(trial),
        epochs=epochs,
        patience=PATIENCE if schedule == "constant" else None,
        seed=trial.user_attrs.get("seed", trial.number),
    )


def _augmentation(trial: BaseTrial) -> Augmentation | None:
    """The usual ranges times a strength, and how much of them is left in the last epoch."""
    if not trial.suggest_categorical("augmentation", (False, True)):
        return None
    strength = trial.suggest_float("distortion_strength", 0.25, 1.25, step=0.25)
    final_share = round(trial.suggest_float("distortion_final_share", 0.25, 1.0, step=0.25), 2)
    return Augmentation(**{name: round(getattr(USUAL, name) * strength, 4) for name in RANGES}, final_share=final_share)


def _short(value: float) -> float:
    """Three digits: what a person can read and type again."""
    return float(f"{value:.3g}")


# One trial


def attempt(recipe: Recipe, dataset: Dataset, go_on: Callable[[int, Epoch], bool]) -> Attempt:
    """Train one network on the training images, asking after every epoch whether to; the test images are not touched."""
    history: list[Epoch] = []
    network = Network(recipe, dataset)
    with closing(network.epochs()) as epochs:  # type: ignore[type-var]  # a generator
        for epoch, figures in enumerate(epochs):
            history.append(figures)
            if not go_on(epoch, figures):
                break
    return Attempt(history, network.seconds, network.model.count_params())


def accuracy(recipe: Recipe, history: Sequence[Epoch]) -> float:
    """On the validation images, of the weights that the training ends with: the best where it has patience, else the last."""
    figures = [epoch["val_accuracy"] for epoch in history]
    return max(figures) if recipe.patience else figures[-1]


# The study


class Search:
    """The trials of one name, data set and number of epochs, in SQLite; held open by one process at a time."""

    def __init__(self, folder: Path, name: str, fingerprint: str, epochs: int) -> None:
        """A new study begins with the recipes in `STARTS`."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.epochs, self.title = name, epochs, title(name, fingerprint, epochs)
        self._study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                f"sqlite:///{folder}/trials.db", engine_kwargs={"connect_args": {"timeout": 60}}
            ),
            study_name=self.title,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=epochs // 4),
        )
        known = len(self._study.trials)
        if not known:
            for start in STARTS:
                self._study.enqueue_trial(start)
        self._study.sampler = _sampler(seed=known)  # another one each time, or a continued sweep proposes the same
        self._trials: dict[int, Trial] = {}

    def propose(self) -> tuple[int, Recipe]:
        """The next trial: its number and its recipe."""
        trial = self._study.ask()
        self._trials[trial.number] = trial
        return trial.number, propose(trial, self.name, self.epochs)

    def goes_on(self, number: int, epoch: int, figures: Epoch) -> bool:
        """Whether the trial is worth its next epoch: still finite, and not below the median of the others at this epoch."""
        trial = self._trials[number]
        trial.report(figures["val_accuracy"], epoch)
        if not math.isfinite(figures["loss"]):
            return False
        return epoch + 1 == self.epochs or not trial.should_prune()

    def complete(self, number: int, accuracy: float, seconds: float) -> None:
        """The trial was trained to its end."""
        self._trials[number].set_user_attr("seconds", seconds)
        self._study.tell(number, accuracy)

    def prune(self, number: int) -> None:
        """The trial was stopped because it did not go on."""
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """The trial cannot be trained."""
        self._study.tell(number, state=TrialState.FAIL)

    def set_aside(self, number: int) -> bool:
        """End a trial that was cut off, and queue its recipe again."""
        self.fail(number)
        return self.queue_again(number)

    def queue_again(self, number: int) -> bool:
        """Let the recipe of a failed trial be tried next, seed included; False when it had its `ATTEMPTS`."""
        trial = self._study.trials[number]
        attempts = trial.user_attrs.get("attempts", 1)
        if attempts >= ATTEMPTS:
            return False
        seed = trial.user_attrs.get("seed", number)
        self._study.enqueue_trial(trial.params, user_attrs={"seed": seed, "attempts": attempts + 1})
        return True

    def take_up(self) -> int:
        """Set aside every trial that a dead process left under way; how many there were."""
        left = [trial.number for trial in self._with(TrialState.RUNNING)]
        for number in left:
            self.set_aside(number)
        return len(left)

    def results(self) -> list[TrialResult]:
        """The trials that were trained to their end, the most accurate first and of equals the earlier."""
        done = [
            TrialResult(
                trial.number, propose(trial, self.name, self.epochs), trial.values[0], trial.user_attrs["seconds"]
            )
            for trial in self._with(TrialState.COMPLETE)
        ]
        return sorted(done, key=lambda result: (-result.accuracy, result.number))

    def begun(self) -> int:
        """How many trials there were, however they ended."""
        return len(self._study.trials) - len(self._with(TrialState.WAITING))

    def set_attribute(self, about: str, what: Any) -> None:
        """Keep something with the study."""
        self._study.set_user_attr(about, what)

    def attribute(self, about: str) -> Any:
        """What was kept, or None."""
        return self._study.user_attrs.get(about)

    def _with(self, state: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(state,))


def title(name: str, fingerprint: str, epochs: int) -> str:
    """What only trials that can be compared have in common: name, data, number of epochs and space."""
    return f"{name}-{fingerprint}-{epochs}-epochs-space-{SPACE}"


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    """TPE over all fields together; fields that depend on another (the rate of an optimiser) in groups of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # groups; the lock file holds Optuna
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


def describe(recipe: Recipe) -> str:
    """The recipe in a line, what is off left out: `784-512-256-10, batch norm, dropout 0.15, adamw 0.002 cosine, batch 256`."""
    decay = f" decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    schedule = " cosine" if recipe.schedule == "cosine" else ""
    words = [
        str(recipe.architecture),
        f"{recipe.optimizer} {recipe.learning_rate:g}{schedule}{decay}",
        f"batch {recipe.batch_size}",
        _describe_augmentation(recipe.augmentation) if recipe.augmentation else "",
    ]
    return ", ".join(word for word in words if word)


def _describe_augmentation(augmentation: Augmentation) -> str:
    strength = augmentation.elastic_pixels / USUAL.elastic_pixels
    return f"augmented × {strength:g}" + (
        f" to {strength * augmentation.final_share:g}" if augmentation.final_share < 1 else ""
    )
