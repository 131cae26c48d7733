"""Explains a drift: perturbations are applied to the reference, and those that make it look like the window are reported."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from digits.data.perturbations import PERTURBATIONS, Origin, describe_shift, shift
from digits.images import Images
from monitoring import image_statistics, label_shift
from monitoring.image_statistics import Columns, Values

RECOMMENDATIONS = {
    "client": "Check how the client creates and encodes its images: such a change is usually a fault there.",
    "preprocessing": "Check the preprocessing: the images are framed or lit differently from those in training.",
    "handwriting": "The handwriting has changed: label some of these images, and retrain with them if accuracy suffers.",
    "unknown": "Look at the images: no known perturbation explains them. Label some, and retrain with them if accuracy suffers.",
}
MAX_EXPLANATIONS = 3

# Amounts that are tried on the reference. Those of shift, rotate, slant, scale, dim, noise and grey_paper are estimated
# from the image statistics; of every other perturbation the default amount is tried.
_WIDTHS = (0.25, 0.5, 1.0, 1.5, 2.0)
_CANDIDATES = {
    "quarter_turn": (1.0, 2.0, 3.0),
    "thicken": _WIDTHS,
    "thin": _WIDTHS,
    "blur": (0.4, 0.6, 0.8, 1.0, 1.3, 1.7),
}
# images of each side: applying a perturbation and measuring the result then take about 40 ms
_MAX_IMAGES = 1000
# shares of the initial loss: by which an explanation must reduce it, which all together must explain, and that may remain
_MIN_GAIN = 0.05
_MIN_EXPLAINED = 0.5
_NEGLIGIBLE = 0.04

Medians = dict[str, float]


class Explanation(BaseModel):
    """A perturbation that explains the drift or a part of it."""

    model_config = ConfigDict(frozen=True)

    perturbation: str  # a name of PERTURBATIONS, `label_shift` or `unknown`
    amount: float = 0.0
    down: float = 0.0  # px, the second amount of a shift
    message: str
    origin: Origin | Literal["unknown"]
    explained_share: float = 0.0  # by how much the loss falls when the reference is perturbed likewise, 0 to 1

    @property
    def recommendation(self) -> str:
        return RECOMMENDATIONS[self.origin]

    def apply(self, images: Images) -> Images:
        """The images after the perturbation."""
        if self.perturbation == "shift":
            return shift(images, self.amount, self.down)
        return PERTURBATIONS[self.perturbation].apply(images, self.amount)


@dataclass(frozen=True)
class _State:
    """The reference with the perturbations found so far."""

    images: Images
    digits: Values
    statistics: Columns
    loss: float  # the distance to the window

    @classmethod
    def of(cls, images: Images, digits: Values, target: Columns) -> "_State":
        statistics = image_statistics.measure(images)
        return cls(images, digits, statistics, _loss(statistics, target))


def explain(
    reference: Images, current: Images, reference_digits: Values, current_digits: Values, only_label_shift: bool = False
) -> tuple[Explanation, ...]:
    """The explanations of a drift, the most important first; one named `unknown` when no perturbation explains it.

    The digits are the predicted ones; `only_label_shift` says that nothing but their shares changed. Greedy search: the candidate
    with the smallest loss is applied to the reference before the next is searched, so that several perturbations are told
    apart, and a label shift that only follows from perturbed images (inverted ones are mostly read as 8) is not reported.
    """
    shifted_labels = _label_shift(reference_digits, current_digits)
    if only_label_shift:
        return (shifted_labels.model_copy(update={"explained_share": 1.0}),)
    random = np.random.default_rng(0)
    rows, current_rows = _sample(len(reference), random), _sample(len(current), random)
    target = image_statistics.measure(current[current_rows])
    first = state = _State.of(reference[rows], reference_digits[rows], target)
    found: list[Explanation] = []
    while len(found) < MAX_EXPLANATIONS and state.loss > _NEGLIGIBLE * first.loss:
        known = {explanation.perturbation for explanation in found}
        trials = [
            (candidate, _State.of(candidate.apply(state.images), state.digits, target))
            for candidate in _candidates(state.statistics, target)
            if candidate.perturbation not in known
        ]
        if shifted_labels.perturbation not in known:
            weights = label_shift.importance_weights(state.digits, current_digits)
            drawn = random.choice(len(weights), len(weights), p=weights / weights.sum())
            trials.append((shifted_labels, _State.of(state.images[drawn], state.digits[drawn], target)))
        candidate, best = min(trials, key=lambda trial: trial[1].loss)
        if state.loss - best.loss < _MIN_GAIN * first.loss:
            break
        found.append(candidate.model_copy(update={"explained_share": (state.loss - best.loss) / first.loss}))
        state = best
    if found and state.loss <= (1 - _MIN_EXPLAINED) * first.loss:
        return tuple(found)
    return (Explanation(perturbation="unknown", message="no known perturbation explains the drift", origin="unknown"),)


def _sample(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(count) if count <= _MAX_IMAGES else random.choice(count, _MAX_IMAGES, replace=False)


def _loss(reference: Columns, current: Columns) -> float:
    """The sum of the squared Kolmogorov-Smirnov distances, each reduced by its expectation when nothing differs.

    0.87 is the mean of Kolmogorov's distribution; times the root it is the expected distance of two samples of these sizes.
    """
    chance = 0.87 * np.sqrt(1 / len(reference["ink"]) + 1 / len(current["ink"]))
    distances = (image_statistics.distance(reference[name], current[name]) for name in reference)
    return float(sum(max(distance - chance, 0) ** 2 for distance in distances))


def _candidates(reference: Columns, current: Columns) -> Iterator[Explanation]:
    """Every perturbation at the amounts that are worth trying."""
    before, now = ({name: float(np.median(values)) for name, values in table.items()} for table in (reference, current))
    estimated = _estimated_amounts(before, now)
    for name, perturbation in PERTURBATIONS.items():
        for amount in estimated.get(name, _CANDIDATES.get(name, (perturbation.default,))):
            message = perturbation.describe(amount)
            yield Explanation(perturbation=name, amount=amount, message=message, origin=perturbation.origin)
    right, down = (round(now[name] - before[name], 1) for name in ("centre_x", "centre_y"))
    if max(abs(right), abs(down)) >= 0.2:
        message, origin = describe_shift(right, down), PERTURBATIONS["shift"].origin
        yield Explanation(perturbation="shift", amount=right, down=down, message=message, origin=origin)


def _estimated_amounts(reference: Medians, current: Medians) -> dict[str, Iterable[float]]:
    """The amounts of some perturbations that the medians suggest; none where the medians differ by less than matters."""
    change = {name: current[name] - reference[name] for name in reference}
    ratio = {name: current[name] / reference[name] if reference[name] > 0 else 1.0 for name in reference}
    angle, level, border = change["slant"], ratio["stroke_level"], round(change["border"])
    size = round(float(np.sqrt(ratio["spread_x"] * ratio["spread_y"])), 2)
    return {
        "shift": (),
        "slant": {round(angle * factor) for factor in (0.8, 1.0, 1.25)} if abs(angle) >= 1.5 else (),
        # a rotation slants wide digits by less than its angle
        "rotate": {round(angle * factor) for factor in (0.8, 1.0, 1.25, 1.5, 1.8)} if abs(angle) >= 1.5 else (),
        "scale": (size,) if 0.3 < size < 3 and abs(size - 1) >= 0.03 else (),
        "dim": (1.2, 1.5, 2.0) if level > 1.01 else (round(level, 2),) if 0.03 < level < 0.97 else (),
        "grey_paper": (border,) if border >= 3 else (),
        # the half of the noise below paper is clipped, so the statistic shows between half and all of it
        "noise": {round(change["noise"] * factor) for factor in (1.0, 1.5, 2.0)} if change["noise"] >= 0.5 else (),
    }


def _label_shift(reference: Values, current: Values) -> Explanation:
    """The digit whose share changed most."""
    before, now = label_shift.shares(reference), label_shift.shares(current)
    digit = int(np.abs(now - before).argmax())
    more = "more" if now[digit] > before[digit] else "fewer"
    message = f"{more} {digit}s than in the reference ({now[digit]:.0%} instead of {before[digit]:.0%})"
    amount = float(now[digit] - before[digit])
    return Explanation(perturbation="label_shift", amount=amount, message=message, origin="handwriting")
