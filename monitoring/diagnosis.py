"""What changed, in plain words: each known change is done to the reference, and the one that makes the drift vanish is its cause."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from digits.data import perturbations
from digits.images import Images
from monitoring import image_statistics
from monitoring.image_statistics import Columns, Values

RECOMMENDATIONS = {
    "client": "Look at what the client sends: this looks like a fault in how it makes or encodes its pictures.",
    "preprocessing": "Look at the preprocessing: pictures no longer arrive framed and levelled as the model saw them in training.",
    "retrain": "What people write has changed: have some of these labelled, and retrain with them if accuracy suffers.",
    "look": "Look at the pictures: this is no change we know. Have some labelled, and retrain with them if accuracy suffers.",
}

Medians = dict[str, float]

_SAMPLE = 1000  # images of each side: a re-enactment and its statistics then take some 40 ms
_ROUNDS = 3  # causes named at most
_WORTH = 0.05  # a cause explains at least this share of the drift
_AT_LEAST = 0.5  # causes that explain less than this together are not the cause
_ENOUGH = 0.04  # what is left below this share of the drift needs no cause


class Cause(BaseModel):
    """One change that explains the drift, or a part of it."""

    model_config = ConfigDict(frozen=True)

    kind: str
    amount: float
    message: str
    explains: float  # share of the drift that vanishes when the reference is changed likewise, 0 to 1
    look_at: Literal["client", "preprocessing", "retrain", "look"]
    recommendations: str


@dataclass(frozen=True)
class _Guess:
    """A change with an amount, ready to be tried on the reference."""

    kind: str
    amount: float
    message: str
    look_at: Literal["client", "preprocessing", "retrain", "look"]
    down: float = 0.0

    def done_to(self, images: Images) -> Images:
        if self.kind == "shift":
            return perturbations.shift(images, self.amount, self.down)
        if self.kind == "turn":
            return np.ascontiguousarray(np.rot90(images, -round(self.amount / 90), axes=(1, 2)))
        return _CHANGES[self.kind](images, self.amount)


_CHANGES: dict[str, perturbations.Change] = {
    "rotate": perturbations.rotate,
    "slant": perturbations.slant,
    "scale": perturbations.scale,
    "dim": perturbations.dim,
    "thicken": perturbations.thicken,
    "thin": perturbations.thin,
    "noise": perturbations.noise,
    "blur": perturbations.blur,
    "grey_paper": perturbations.grey_paper,
    "invert": perturbations.invert,
    "mirror": perturbations.mirror,
    "transpose": perturbations.transpose,
}
_UNKNOWN = _Guess("unknown", 0.0, "changed in a way we do not know", "look")


def explain(
    reference: Images, current: Images, before: Values, now: Values, mix_alone: bool = False
) -> tuple[Cause, ...]:
    """The causes of a drift, what explains most first; one of kind `unknown` when nothing known explains it.

    `before` and `now` are the digits answered; `mix_alone` says that nothing but their shares changed. The largest remaining
    explanation is taken again and again, each time done to the reference before the next is looked for, so several changes at
    once are told apart, and a mix of answers that only follows from changed images (inverted ones are mostly called 8) is not named.
    """
    if mix_alone:
        return (_cause(_mix(before, now), 1.0),)
    random = np.random.default_rng(0)
    chosen, taken = _some(len(reference), random), _some(len(current), random)
    target = image_statistics.measure(current[taken])
    state = _State.of(reference[chosen], before[chosen], target)
    at_first = state.loss
    causes: list[Cause] = []
    while len(causes) < _ROUNDS and state.loss > _ENOUGH * at_first:
        known = {cause.kind for cause in causes}
        trials = [
            (guess, state.after(guess, target))
            for guess in _guesses(state.statistics, target)
            if guess.kind not in known
        ]
        if "mix" not in known:
            weights = perturbations.weights_like(state.digits, now)
            weighted = random.choice(len(weights), len(weights), p=weights / weights.sum())
            trials.append((_mix(before, now), _State.of(state.images[weighted], state.digits[weighted], target)))
        guess, best = min(trials, key=lambda trial: trial[1].loss)
        if state.loss - best.loss < _WORTH * at_first:
            break
        causes.append(_cause(guess, (state.loss - best.loss) / at_first))
        state = best
    return tuple(causes) if state.loss <= (1 - _AT_LEAST) * at_first and causes else (_cause(_UNKNOWN, 0.0),)


@dataclass(frozen=True)
class _State:
    """The reference as re-enacted so far."""

    images: Images
    digits: Values
    statistics: Columns
    loss: float  # how far it still is from the window

    @classmethod
    def of(cls, images: Images, digits: Values, target: Columns) -> "_State":
        statistics = image_statistics.measure(images)
        return cls(images, digits, statistics, _loss(statistics, target))

    def after(self, guess: _Guess, target: Columns) -> "_State":
        return _State.of(guess.done_to(self.images), self.digits, target)


def _cause(guess: _Guess, explains: float) -> Cause:
    return Cause(
        kind=guess.kind,
        amount=guess.amount,
        message=guess.message,
        explains=explains,
        look_at=guess.look_at,
        recommendations=RECOMMENDATIONS[guess.look_at],
    )


def _some(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Indices of all images, or of a random thousand."""
    return np.arange(count) if count <= _SAMPLE else random.choice(count, _SAMPLE, replace=False)


def _loss(before: Columns, now: Columns) -> float:
    """How far the statistics and blocks are apart: squared Kolmogorov-Smirnov distances beyond what chance alone makes.

    0.87 is the mean of Kolmogorov's distribution: times the root, the distance to expect of two samples of these sizes.
    """
    chance = 0.87 * np.sqrt(1 / len(before["ink"]) + 1 / len(now["ink"]))
    return float(sum(max(image_statistics.distance(before[name], now[name]) - chance, 0) ** 2 for name in before))


def _guesses(before: Columns, now: Columns) -> Iterator[_Guess]:
    """The changes we know, with the amounts that the statistics suggest: what stands out by less is not tried."""
    was, is_now = ({name: float(np.median(values)) for name, values in table.items()} for table in (before, now))
    moved = {name: is_now[name] - was[name] for name in was}
    yield _Guess("invert", 1.0, "polarity inverted: ink and paper are exchanged", "client")
    yield _Guess("mirror", 1.0, "mirrored: left and right are exchanged", "client")
    yield _Guess("transpose", 1.0, "transposed: rows and columns are exchanged", "client")
    for degrees, way in ((90.0, "a quarter clockwise"), (180.0, "upside down"), (270.0, "a quarter anticlockwise")):
        yield _Guess("turn", degrees, f"turned {way}", "client")
    yield from _framing(was, is_now, moved)
    yield from _light(was, is_now, moved)
    for width in (0.25, 0.5, 1.0, 1.5, 2.0):
        yield _Guess("thicken", width, f"strokes thicker by about {width:g} px", "retrain")
        yield _Guess("thin", width, f"strokes thinner by about {width:g} px", "retrain")


def _framing(was: Medians, is_now: Medians, moved: Medians) -> Iterator[_Guess]:
    right, down = round(moved["centre_x"], 1), round(moved["centre_y"], 1)
    if max(abs(right), abs(down)) >= 0.2:
        yield _Guess("shift", right, f"shifted {_direction(right, down)}", "preprocessing", down)
    if abs(moved["slant"]) >= 1.5:
        side = "right" if moved["slant"] > 0 else "left"
        for factor in (0.8, 1.0, 1.25, 1.5, 1.8):  # turning the page tilts wide digits by less than its angle
            degrees = round(moved["slant"] * factor)
            if factor <= 1.25:
                yield _Guess("slant", degrees, f"leaning {abs(degrees)}° more to the {side}", "retrain")
            way = "clockwise" if degrees > 0 else "anticlockwise"
            yield _Guess("rotate", degrees, f"rotated {abs(degrees)}° {way}", "preprocessing")
    if was["spread_x"] > 0 and was["spread_y"] > 0:
        factor = float(np.sqrt(is_now["spread_x"] / was["spread_x"] * is_now["spread_y"] / was["spread_y"]))
        if 0.3 < factor < 3 and abs(factor - 1) >= 0.03:
            size = "larger" if factor > 1 else "smaller"
            yield _Guess("scale", round(factor, 2), f"digits {abs(factor - 1):.0%} {size}", "preprocessing")


def _light(was: Medians, is_now: Medians, moved: Medians) -> Iterator[_Guess]:
    factor = is_now["stroke_level"] / was["stroke_level"] if was["stroke_level"] else 1.0
    if 0.03 < factor < 0.97:
        yield _Guess("dim", round(factor, 2), f"dimmer: ink at {factor:.0%} of its level", "preprocessing")
    for brighter in (1.2, 1.5, 2.0) if factor > 1.01 else ():
        yield _Guess(
            "dim", brighter, f"brighter: ink at about {brighter:.0%} of its level, cut off at white", "preprocessing"
        )
    if moved["border"] >= 3:
        paper = round(moved["border"])
        yield _Guess("grey_paper", paper, f"paper is grey: level {paper} of 255 instead of 0", "preprocessing")
    if moved["noise"] >= 0.5:
        # the half of the noise that falls below paper is cut off, so the statistic shows half to all of it
        for sigma in {round(moved["noise"] * factor) for factor in (1.0, 1.5, 2.0)}:
            yield _Guess("noise", sigma, f"noisier: noise of {sigma} grey levels", "preprocessing")
    for width in (0.4, 0.6, 0.8, 1.0, 1.3, 1.7):
        yield _Guess("blur", width, f"blurred by about {width:g} px", "client")


def _direction(right: float, down: float) -> str:
    """`1.0 px right and 0.5 px up`; a side below 0.2 px is not worth a word."""
    sides = [(abs(right), "right" if right > 0 else "left"), (abs(down), "down" if down > 0 else "up")]
    return " and ".join(f"{amount:.1f} px {side}" for amount, side in sides if amount >= 0.2)


def _mix(before: Values, now: Values) -> _Guess:
    """The digit whose share changed most."""
    was, is_now = (np.bincount(digits.astype(int), minlength=10) / len(digits) for digits in (before, now))
    digit = int(np.abs(is_now - was).argmax())
    more = "more" if is_now[digit] > was[digit] else "fewer"
    message = f"{more} {digit}s than before ({is_now[digit]:.0%} instead of {was[digit]:.0%})"
    return _Guess("mix", float(is_now[digit] - was[digit]), message, "retrain")
