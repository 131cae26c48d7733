"""Watching the watcher: how often the detector, as it is set, catches a known change, and how often it cries wolf."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from digits.data import perturbations
from digits.images import Images, Labels
from digits.reference import Reference
from monitoring import drift, image_statistics
from monitoring.image_statistics import Columns

Answer = Callable[[Images], NDArray[np.float32]]  # the version: (n, 28, 28) to probabilities (n, 10)

# Three strengths each; the last is the one that must be caught. A mix is the factor on one digit's share.
INJECTED: dict[str, tuple[perturbations.Change, tuple[float, float, float], str]] = {
    "shift": (perturbations.shift, (0.25, 0.5, 1.0), "{:g} px right"),
    "rotate": (perturbations.rotate, (2.5, 5.0, 10.0), "{:g}° clockwise"),
    "dim": (perturbations.dim, (0.95, 0.8, 0.6), "to {:.0%}"),
    "thicker": (perturbations.thicken, (0.25, 0.5, 1.0), "{:g} px"),
    "thinner": (perturbations.thin, (0.25, 0.5, 1.0), "{:g} px"),
    "noise": (perturbations.noise, (2.5, 10.0, 20.0), "{:g} grey levels"),
    "blur": (perturbations.blur, (0.4, 0.5, 1.0), "{:g} px"),
}
MIX = (1.25, 1.5, 2.0)


class Power(BaseModel):
    """How many windows with one change were called drift; without a change those are false alarms."""

    model_config = ConfigDict(frozen=True)

    change: str
    strength: str
    caught: int
    windows: int

    @property
    def share(self) -> float:
        return self.caught / self.windows


def measure(
    reference: Reference,
    images: Images,
    labels: Labels,
    answer: Answer,
    count: int,
    policy: drift.DriftPolicy | None = None,
    windows: int = 40,
    clean_windows: int = 200,
    seed: int = 0,
) -> list[Power]:
    """Power for windows of `count` digits drawn from held-out images; the first entry is the false-alarm rate.

    The held-out images must be of the kind the reference was drawn from and not in it: what was trained on is answered too well.
    """
    random = np.random.default_rng(seed)
    embedding = image_statistics.embed(reference.images)
    before = drift.table(reference.images, reference.probabilities, embedding)
    limits = drift.thresholds(before, count, policy)
    before = {name: np.sort(values) for name, values in before.items()}  # sorted once instead of for every window

    def caught(table: Columns, times: int, drawn: Callable[[int], NDArray[np.int64]]) -> int:
        picks = (drawn(window) for window in range(times))
        return sum(_alarms(before, {name: values[pick] for name, values in table.items()}, limits) for pick in picks)

    def plain(_: int) -> NDArray[np.int64]:
        return random.choice(len(images), count, replace=count > len(images))

    clean = drift.table(images, answer(images), embedding)
    found = [Power(change="none", strength="", caught=caught(clean, clean_windows, plain), windows=clean_windows)]
    for name, strength, changed in _injected(images):
        table = drift.table(changed, answer(changed), embedding)
        found.append(Power(change=name, strength=strength, caught=caught(table, windows, plain), windows=windows))
    for factor in MIX:

        def mixed(window: int, factor: float = factor) -> NDArray[np.int64]:
            return perturbations.more_of(labels, window % 10, factor, count, random)

        message = f"one digit {factor:g} times as often"
        found.append(Power(change="mix", strength=message, caught=caught(clean, windows, mixed), windows=windows))
    return found


def _injected(images: Images) -> Iterator[tuple[str, str, Images]]:
    """Every change at every strength: its name, its strength in words, the changed images."""
    for name, (change, amounts, message) in INJECTED.items():
        for amount in amounts:
            yield name, message.format(amount), change(images, amount)
    yield "inverted", "", perturbations.invert(images)


def _alarms(before: Columns, now: Columns, limits: dict[str, float]) -> bool:
    return any(column.drifted for column in drift.judge(before, now, limits))
