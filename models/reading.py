"""Reads the digits of a line: of all ways to cut it and to put its parts together, the text that is likeliest in sum.

A prefix beam search over the lattice of candidates (as Graves et al. 2006 for CTC): hypotheses with the same text are added up, so the
confidence of a text knows of its alternatives. A pattern leaves only texts that match it, by partial matching.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp, inf, log1p
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from digits.errors import quote
from digits.images import Images
from digits.pictures import cuts, rectification
from digits.pictures.cuts import Candidates, Part
from digits.pictures.rectification import Ink
from digits.pictures.text_lines import DIGIT_HEIGHT
from models.onnx_model import Output

BEAM = 32  # texts kept at each place
MIN_PROBABILITY = 1e-4  # of a digit that is followed further
MATCH_SECONDS = 1.0  # for all matches of the patterns in a line
MAX_PATTERN_LENGTH, MAX_LENGTH = 200, 100
# Log-weights, in nats, of what is no digit of the model.
_CUT, _PER_PASSED = -0.7, -8.0  # of a cut, and per digit height of ink that it passes
_JOINED, _PER_GAP = -0.5, -6.0  # of a component put to others, and per digit height of paper between them
_LEFT_OUT, _PER_SIZE = -1.5, -14.0  # of a part that is dirt, and per digit height of its longer side
_SEPARATOR = -0.5


@dataclass(frozen=True)
class ReadDigit:
    """One digit of a reading."""

    candidate: int  # its number among the candidates
    digit: int


@dataclass(frozen=True)
class Reading:
    """The likeliest text of a line."""

    text: str
    confidence: float  # share of the text in the weight of all texts that fit
    fits: bool  # whether any text fits the pattern; the likeliest one otherwise
    digits: list[ReadDigit]
    left_out: int  # pieces that are no digits


class _Path(NamedTuple):
    """A way through the lattice, as a linked list."""

    before: "_Path | None"
    edge: "_Edge"


@dataclass(frozen=True)
class _Edge:
    """What the parts from `start` up to `end` may be."""

    start: int
    end: int
    text: str
    weight: float
    candidate: int | None = None


@dataclass
class _Hypothesis:
    total: float = -inf  # log of the summed weights of all paths with this text
    best: float = -inf
    path: _Path | None = field(default=None)


Patterns = Sequence["regex.Pattern[str]"]


def patterns(pattern: str | None = None, length: int | None = None) -> Patterns:
    """What a line must match as a whole: a regular expression, and a number of digits.

    Raises ValueError for one that is no regular expression, or too long, and for another length than 1 to 100.
    """
    if length is not None and not 1 <= length <= MAX_LENGTH:
        raise ValueError(f"length is {length}; expected a number of digits from 1 to {MAX_LENGTH}")
    if pattern is not None and len(pattern) > MAX_PATTERN_LENGTH:
        raise ValueError(f"pattern has {len(pattern)} characters; expected at most {MAX_PATTERN_LENGTH}")
    try:
        given = [] if pattern is None else [regex.compile(pattern)]
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern is {quote(pattern)}; expected a regular expression ({error})") from error
    return given + ([] if length is None else [regex.compile(rf"(?:[^0-9]*+[0-9]){{{length}}}[^0-9]*+")])


def read(ink: Ink, predict: Callable[[Images], Output], patterns: Patterns = ()) -> tuple[Reading, Candidates]:
    """The reading of a line of digits about 48 pixels high, and what may be its digits.

    Raises ValueError for patterns that take too long to match.
    """
    even = rectification.even_stroke(ink, DIGIT_HEIGHT)
    parts = cuts.parts(even)
    found = cuts.candidates(even, parts)
    output = predict(found.images) if len(found.images) else None
    edges = _edges(parts, found, output)
    finished = _search(len(parts), edges, patterns)
    fits = bool(finished)
    if not fits:
        finished = _search(len(parts), edges, ())
    text, best = max(finished.items(), key=lambda one: one[1].total)
    whole = float(np.logaddexp.reduce([one.total for one in finished.values()]))
    return _reading(text, exp(best.total - whole), fits, best.path, parts), found


def _edges(parts: list[Part], found: Candidates, output: Output | None) -> list[list[_Edge]]:
    """What may begin at each part."""
    edges: list[list[_Edge]] = [[] for _ in parts]
    for number, part in enumerate(parts):
        size = max(part.mask.shape) / DIGIT_HEIGHT
        cut = _CUT + _PER_PASSED * part.passed if part.passed else 0.0
        edges[number].append(_Edge(number, number + 1, "", cut + _LEFT_OUT + _PER_SIZE * size))
        if separator := _separator(parts, number):
            edges[number].append(_Edge(number, number + 1, separator, _SEPARATOR))
    if output is None:
        return edges
    logs = np.log(np.maximum(output.probabilities, 1e-12)) - _log_one_plus_exp(-output.digit_scores)[:, None]
    for index, (start, end) in enumerate(zip(found.start, found.end, strict=True)):
        passed = parts[start].passed
        weight = _CUT + _PER_PASSED * passed if passed else 0.0
        weight += _JOINED * (found.components[index] - 1) + _PER_GAP * found.gaps[index]
        for digit in np.flatnonzero(output.probabilities[index] > MIN_PROBABILITY).tolist():
            edges[start].append(_Edge(start, end, str(digit), weight + float(logs[index, digit]), index))
    return edges


def _log_one_plus_exp(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.logaddexp(0, np.nan_to_num(values.astype(np.float64), nan=-inf))


def _separator(parts: list[Part], number: int) -> str:
    """The sign that a small part between two digits may be; empty for none."""
    part = parts[number]
    if sum(other.component == part.component for other in parts) > 1:
        return ""
    height, width = (side / DIGIT_HEIGHT for side in part.mask.shape)
    tall = [other for other in parts if other.mask.shape[0] >= 0.5 * DIGIT_HEIGHT]
    before, after = (
        [one for one in tall if one.right <= part.left + 2],
        [one for one in tall if one.left >= part.right - 2],
    )
    if not before or not after or any(one.left < part.left and one.right > part.right for one in tall):
        return ""
    left, right = max(before, key=lambda one: one.right), min(after, key=lambda one: one.left)
    top, bottom = (left.top + right.top) / 2, (left.bottom + right.bottom) / 2
    middle = ((part.top + part.bottom) / 2 - top) / max(1.0, bottom - top)
    if max(height, width) <= 0.3 and middle > 0.8:
        return "."
    if 0.2 <= width <= 0.9 and height <= 0.25 and width >= 1.6 * height and 0.25 < middle < 0.75:
        return "-"
    return ""


def _search(count: int, edges: list[list[_Edge]], patterns: Patterns) -> dict[str, _Hypothesis]:
    """The texts of all parts with their weights."""
    places: list[dict[str, _Hypothesis]] = [{} for _ in range(count + 1)]
    places[0][""] = _Hypothesis(0.0, 0.0)
    deadline = time.monotonic() + MATCH_SECONDS

    @cache
    def may_fit(text: str, partial: bool) -> bool:
        """Whether a text matches, or may be continued to one that does."""
        try:
            return all(
                pattern.fullmatch(text, partial=partial, timeout=max(1e-3, deadline - time.monotonic())) is not None
                for pattern in patterns
            )
        except TimeoutError:
            raise ValueError("the pattern takes too long to match; send one without nested repetitions") from None

    for place, following in enumerate(edges):
        kept = sorted(places[place].items(), key=lambda one: -one[1].total)[:BEAM]
        for text, hypothesis in kept:
            for edge in following:
                longer = text + edge.text
                if not may_fit(longer, True):
                    continue
                known_one = places[edge.end].setdefault(longer, _Hypothesis())
                known_one.total = _add(known_one.total, hypothesis.total + edge.weight)
                if hypothesis.best + edge.weight > known_one.best:
                    known_one.best, known_one.path = hypothesis.best + edge.weight, _Path(hypothesis.path, edge)
    return {text: one for text, one in places[count].items() if may_fit(text, False)}


def _add(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high if low == -inf else high + log1p(exp(low - high))


def _reading(text: str, confidence: float, fits: bool, path: _Path | None, parts: list[Part]) -> Reading:
    digits: list[ReadDigit] = []
    left_out: set[int] = set()
    while path is not None:
        edge = path.edge
        if edge.candidate is not None:
            digits.append(ReadDigit(edge.candidate, int(edge.text)))
        elif not edge.text and max(parts[edge.start].mask.shape) >= 0.35 * DIGIT_HEIGHT:
            left_out.add(parts[edge.start].component)
        path = path.before
    return Reading(text, confidence, fits, digits[::-1], len(left_out))
