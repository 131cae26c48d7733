"""Explains a drift: perturbations are applied to the reference, and those that make it look like the window are reported."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel

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

# Images of each side: applying a perturbation and measuring the result then take about 40 ms.
_MAX_IMAGES = 1000
# Shares of the initial loss: by which an explanation must reduce it, which all together must explain, and that may remain.
_MIN_GAIN = 0.05
_MIN_EXPLAINED = 0.5
_NEGLIGIBLE = 0.04


class Explanation(BaseModel, frozen=True):
    """A perturbation that explains the drift or a part of it."""

    perturbation: str  # a name of PERTURBATIONS, `label_shift` or `unknown`
    amount: float = 0.0  # of a shift, to the right
    message: str
    origin: Origin | Literal["unknown"]
    explained_share: float = 0.0  # by how much the loss falls when the reference is perturbed likewise, 0 to 1

    @property
    def recommendation(self) -> str:
        return RECOMMENDATIONS[self.origin]


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
    rows, current_rows = (random.permutation(len(images))[:_MAX_IMAGES] for images in (reference, current))
    target = image_statistics.measure(current[current_rows])
    images, digits = reference[rows], reference_digits[rows]
    first = remaining = _loss(images, target)
    found: list[Explanation] = []
    while len(found) < MAX_EXPLANATIONS and remaining > _NEGLIGIBLE * first:
        weights = label_shift.importance_weights(digits, current_digits)
        drawn = random.choice(len(weights), len(weights), p=weights / weights.sum())
        # Explanations, each with the reference perturbed likewise and its digits.
        trials: list[tuple[Explanation, Images, Values]] = [(shifted_labels, images[drawn], digits[drawn])]
        trials += [(explanation, perturbed, digits) for explanation, perturbed in _candidates(images, target)]
        known = {explanation.perturbation for explanation in found}
        trials = [trial for trial in trials if trial[0].perturbation not in known]
        losses = [_loss(perturbed, target) for _, perturbed, _ in trials]
        best = int(np.argmin(losses))
        gain = (remaining - losses[best]) / first
        if gain < _MIN_GAIN:
            break
        explanation, images, digits = trials[best]
        found.append(explanation.model_copy(update={"explained_share": gain}))
        remaining = losses[best]
    if found and remaining <= (1 - _MIN_EXPLAINED) * first:
        return tuple(found)
    return (Explanation(perturbation="unknown", message="no known perturbation explains the drift", origin="unknown"),)


def _loss(images: Images, current: Columns) -> float:
    """The sum of the squared Kolmogorov-Smirnov distances, each reduced by its expectation when nothing differs.

    0.87 is the mean of Kolmogorov's distribution; times the root it is the expected distance of two samples of these sizes.
    """
    chance = 0.87 * np.sqrt(1 / len(images) + 1 / len(current["ink"]))
    measured = image_statistics.measure(images)
    distances = (image_statistics.distance(measured[name], values) for name, values in current.items())
    return float(sum(max(distance - chance, 0) ** 2 for distance in distances))


def _candidates(images: Images, current: Columns) -> Iterator[tuple[Explanation, Images]]:
    """The images after every perturbation, by the amounts that the medians suggest, else by the default one."""
    measured = image_statistics.measure(images)
    before, now = ({name: float(np.median(values)) for name, values in table.items()} for table in (measured, current))
    amounts = _amounts(before, now)
    for name, perturbation in PERTURBATIONS.items():
        for amount in amounts.get(name, (perturbation.default,)):
            message = perturbation.describe(amount)
            explanation = Explanation(perturbation=name, amount=amount, message=message, origin=perturbation.origin)
            yield explanation, perturbation.apply(images, amount)
    right, down = (round(now[name] - before[name], 1) for name in ("centre_x", "centre_y"))
    if max(abs(right), abs(down)) >= 0.2:
        message, origin = describe_shift(right, down), PERTURBATIONS["shift"].origin
        explanation = Explanation(perturbation="shift", amount=right, message=message, origin=origin)
        yield explanation, shift(images, right, down)


def _amounts(reference: Mapping[str, float], current: Mapping[str, float]) -> dict[str, Iterable[float]]:
    """The amounts of a perturbation that are tried; none where the medians differ by less than matters."""
    change = {name: current[name] - reference[name] for name in reference}
    ratio = {name: current[name] / reference[name] if reference[name] > 0 else 1.0 for name in reference}
    angle, level, border = change["slant"], ratio["stroke_level"], round(change["border"])
    size = round(float(np.sqrt(ratio["spread_x"] * ratio["spread_y"])), 2)
    widths = (0.25, 0.5, 1.0, 1.5, 2.0)
    return {
        # `_candidates` tries two directions.
        "shift": (),
        "slant": {round(angle * factor) for factor in (0.8, 1.0, 1.25)} if abs(angle) >= 1.5 else (),
        # A rotation slants wide digits by less than its angle.
        "rotate": {round(angle * factor) for factor in (0.8, 1.0, 1.25, 1.5, 1.8)} if abs(angle) >= 1.5 else (),
        "scale": (size,) if 0.3 < size < 3 and abs(size - 1) >= 0.03 else (),
        "dim": (1.2, 1.5, 2.0) if level > 1.01 else (round(level, 2),) if 0.03 < level < 0.97 else (),
        "grey_paper": (border,) if border >= 3 else (),
        # The half of the noise below paper is clipped, so the statistic shows between half and all of it.
        "noise": {round(change["noise"] * factor) for factor in (1.0, 1.5, 2.0)} if change["noise"] >= 0.5 else (),
        "quarter_turn": (1.0, 2.0, 3.0),
        "thicken": widths,
        "thin": widths,
        "blur": (0.4, 0.6, 0.8, 1.0, 1.3, 1.7),
    }


def _label_shift(reference: Values, current: Values) -> Explanation:
    """The digit whose share changed most."""
    changes, now = label_shift.change(reference, current), label_shift.shares(current)
    digit = int(np.abs(changes).argmax())
    amount = float(changes[digit])
    instead = f"{now[digit]:.0%} instead of {now[digit] - amount:.0%}"
    message = f"{'more' if amount > 0 else 'fewer'} {digit}s than in the reference ({instead})"
    return Explanation(perturbation="label_shift", amount=amount, message=message, origin="handwriting")
