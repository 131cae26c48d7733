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
from digits.pictures import mnist_frame
from digits.pictures.ink import Ink
from digits.pictures.regions import Bounds
from digits.pictures.text_lines import DIGIT_HEIGHT
from models.lattice import Edge, Image, Lattice, lattice_of
from models.onnx_model import Output

BEAM = 16  # texts kept at each node
_MAX_BEHIND = 12.0  # nats behind the best path of one that is followed, also when only that fits a pattern
MATCH_SECONDS = 1.0  # of processor time, for all matches of a pattern in a picture
MAX_PATTERN_LENGTH, MAX_LENGTH = 200, 100


@dataclass(frozen=True)
class ReadDigit:
    """One digit of a reading."""

    digit: int
    bounds: Bounds  # in pixels of the line's ink
    image: Image
    probabilities: NDArray[np.float32]  # (10,) that the model gives the image
    digit_score: np.float32  # NaN where the model has none


@dataclass(frozen=True)
class Reading:
    """The likeliest text of a line."""

    text: str
    confidence: float  # share of the text in the weight of all texts that fit
    fits: bool  # whether any text fits the pattern; the likeliest one otherwise
    digits: list[ReadDigit]
    left_out: int  # pieces that are no digits


class _Path(NamedTuple):
    """A path through the lattice, as a linked list."""

    before: "_Path | None"
    edge: Edge


@dataclass
class _Hypothesis:
    total: float = -inf  # log of the summed weights of all paths with this text
    best: float = -inf
    path: _Path | None = field(default=None)


@dataclass(eq=False)
class Patterns:
    """What each line of a picture must match as a whole."""

    pattern: str | None = None
    compiled: Sequence["regex.Pattern[str]"] = ()
    seconds: float = MATCH_SECONDS  # left for the matches of all lines

    def may_fit(self, text: str, partial: bool) -> bool:
        """Whether a text matches, or may be continued to one that does; raises ValueError when no time is left."""
        if not self.compiled:
            return True
        started = time.thread_time()
        try:
            if self.seconds <= 0:
                raise TimeoutError
            return all(one.fullmatch(text, partial=partial, timeout=self.seconds) is not None for one in self.compiled)
        except TimeoutError:
            problem = f"pattern is {quote(self.pattern)} and takes too long to match"
            raise ValueError(f"{problem}; send one without nested repetitions") from None
        finally:
            self.seconds -= time.thread_time() - started


def patterns(pattern: str | None = None, length: int | None = None) -> Patterns:
    """What the lines of one picture must match: a regular expression, and a number of digits.

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
    of_length = [] if length is None else [regex.compile(rf"(?:[^0-9]*+[0-9]){{{length}}}[^0-9]*+")]
    return Patterns(pattern, given + of_length)


def read(ink: Ink, predict: Callable[[Images], Output], patterns: Patterns) -> Reading:
    """The reading of a line of digits about 48 pixels high.

    Raises ValueError for patterns that take too long to match.
    """
    lattice = lattice_of(mnist_frame.even_stroke(ink, DIGIT_HEIGHT), predict)
    edges = lattice.edges()
    finished = _search(edges, patterns)
    fits = bool(finished)
    if not fits:
        finished = _search(edges, Patterns())
    text, best = max(finished.items(), key=lambda one: one[1].total)
    whole = float(np.logaddexp.reduce([one.total for one in finished.values()]))
    return _reading(text, exp(best.total - whole), fits, best.path, lattice)


def _search(edges: list[list[Edge]], patterns: Patterns) -> dict[str, _Hypothesis]:
    """The texts of a whole line with their weights."""
    nodes: list[dict[str, _Hypothesis]] = [{} for _ in range(len(edges) + 1)]
    nodes[0][""] = _Hypothesis(0.0, 0.0)
    may_fit, ahead = cache(patterns.may_fit), _best_ahead(edges)
    for node, following in enumerate(edges):
        kept = sorted(nodes[node].items(), key=lambda one: -one[1].total)[:BEAM]
        for text, hypothesis in kept:
            for edge in following:
                total, best = hypothesis.total + edge.weight, hypothesis.best + edge.weight
                longer = text + edge.text
                if total + ahead[edge.region.end] < ahead[0] - _MAX_BEHIND or not may_fit(longer, True):
                    continue
                known_one = nodes[edge.region.end].setdefault(longer, _Hypothesis())
                known_one.total = _add(known_one.total, total)
                if best > known_one.best:
                    known_one.best, known_one.path = best, _Path(hypothesis.path, edge)
    return {text: one for text, one in nodes[-1].items() if may_fit(text, False)}


def _best_ahead(edges: list[list[Edge]]) -> list[float]:
    """The weight of the best path from each node to the end."""
    ahead = [0.0] * (len(edges) + 1)
    for node in range(len(edges) - 1, -1, -1):
        ahead[node] = max((edge.weight + ahead[edge.region.end] for edge in edges[node]), default=-inf)
    return ahead


def _add(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high if low == -inf else high + log1p(exp(low - high))


def _reading(text: str, confidence: float, fits: bool, path: _Path | None, lattice: Lattice) -> Reading:
    digits: list[ReadDigit] = []
    left_out = 0
    while path is not None:
        region, sign = path.edge.region, path.edge.text
        if sign.isdecimal():
            image, probabilities, digit_score, _ = lattice.classified[region]
            digits.append(ReadDigit(int(sign), region.bounds, image, probabilities, digit_score))
        elif not sign and region.may_be_digit:
            left_out += 1
        path = path.before
    return Reading(text, confidence, fits, digits[::-1], left_out)
