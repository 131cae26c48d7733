"""Reads the digits of a line: of all ways to cut it and to put its parts together, the text that is likeliest in sum.

A prefix beam search over the lattice of candidates (as Graves et al. 2006 for CTC): hypotheses with the same text are added up, so the
confidence of a text knows of its alternatives. A pattern leaves only texts that match it, by partial matching.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp, inf, log, log1p
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from digits.errors import quote
from digits.images import Images
from digits.pictures import cuts, mnist_frame, separators
from digits.pictures.cuts import Box, Component, Place, Region
from digits.pictures.ink import Ink
from digits.pictures.text_lines import DIGIT_HEIGHT
from models.onnx_model import Output

BEAM = 16  # texts kept at each place
_MAX_BEHIND = 12.0  # nats behind the best way of one that is followed, also when only that fits a pattern
MATCH_SECONDS = 1.0  # of processor time, for all matches of a pattern in a picture
MAX_PATTERN_LENGTH, MAX_LENGTH = 200, 100
# Log-probabilities: of a digit that is followed further, of one after which another may begin, and of a component that is not cut.
_MIN_LOG, _REACHED, _SURE, _SURE_IF_NARROW = log(1e-3), log(0.02), log(0.98), log(0.6)
# Log-weights in nats, near the maximum likelihood of the texts of lines of MNIST's training digits, some with letters among them.
_CUT, _PER_PASSED = 3.5, -11.5  # of a cut, and per digit height of ink that it passes
_JOINED, _PER_GAP = -3.0, -5.9  # of a component put to others, and per digit height of paper between them
_LEFT_OUT, _PER_SIZE = -5.0, -13.0  # of ink that is dirt, and per digit height of its longer side
_PER_HEIGHT = -6.0  # per e-fold by which a digit is higher or lower than those of the line
_PER_NARROW, _PER_WIDE = -1.5, -3.5  # per e-fold by which a digit is narrower, unless it is a 1, or wider than usual
_PER_IS_DIGIT = 2.0  # per nat of the log-probability that a region is a digit
_AGAINST_CUT = 6.0  # prior log-odds against a region that is cut out, compared with whole components: most are no digit
_WIDTH = 0.7  # of a digit in digit heights

Image = NDArray[np.uint8]  # (28, 28)


@dataclass(frozen=True)
class ReadDigit:
    """One digit of a reading."""

    digit: int
    box: Box  # left, top, right and bottom in pixels of the line's ink
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


class _Classified(NamedTuple):
    """An image and what the model says of it."""

    image: Image
    probabilities: NDArray[np.float32]  # (10,)
    digit_score: np.float32
    logs: NDArray[np.float32]  # (10,): of the probabilities, given that it is a digit

    @property
    def log_odds(self) -> float:
        """That the image is a digit; a model without a score takes all for digits."""
        return float(np.nan_to_num(self.digit_score, nan=inf))

    @property
    def highest(self) -> float:
        """The log-probability of the likeliest digit."""
        return float(self.logs.max()) + _log_sigmoid(self.log_odds)


class _Path(NamedTuple):
    """A way through the lattice, as a linked list."""

    before: "_Path | None"
    edge: "_Edge"


@dataclass(frozen=True)
class _Edge:
    """What a region may be: a digit, a separator, or with no text dirt."""

    region: Region
    text: str
    weight: float


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


@dataclass(frozen=True, eq=False)
class Lattice:
    """All that the regions of a line may be."""

    components: list[Component]
    places: list[Place]
    regions: list[Region]
    classified: dict[Region, _Classified]

    def edges(self) -> list[list["_Edge"]]:
        """What may begin at each place."""
        edges: list[list[_Edge]] = [[] for _ in self.places[1:]]
        for region in self.regions:
            edges[region.start] += self._edges_of(region)
        return edges

    def _edges_of(self, region: Region) -> Iterator["_Edge"]:
        cut = self.places[region.start].cut
        weight = _CUT + _PER_PASSED * cut.passed if cut else 0.0
        is_whole = self.places[region.start].cut is None and self.places[region.end].cut is None
        if len(region.pieces) == 1:
            signs = separators.of(self.components, region.pieces[0]) if is_whole else {}
            yield from (_Edge(region, sign, weight) for sign, weight in signs.items())
            if is_whole or not region.may_be_digit:
                yield _Edge(region, "", weight + _LEFT_OUT + _PER_SIZE * max(region.height, region.width))
        if region in self.classified:
            one = self.classified[region]
            weight += _JOINED * (len(region.pieces) - 1) + _PER_GAP * region.gap + _PER_HEIGHT * abs(log(region.height))
            weight += _PER_IS_DIGIT * _log_sigmoid(one.log_odds - (0.0 if is_whole else _AGAINST_CUT))
            weight += _PER_WIDE * max(0.0, log(region.width / _WIDTH))
            narrow = _PER_NARROW * max(0.0, log(_WIDTH / region.width))
            for digit in np.flatnonzero(one.logs > _MIN_LOG).tolist():
                yield _Edge(region, str(digit), weight + float(one.logs[digit]) + (narrow if digit != 1 else 0.0))


def lattice_of(ink: Ink, predict: Callable[[Images], Output]) -> Lattice:
    """The lattice of a line; only components that are not surely one digit are cut."""
    components = cuts.components(ink)
    whole = _classified(ink, [cuts.region(0, 0, component) for component in components], predict)
    narrow = _WIDTH * DIGIT_HEIGHT
    is_unsure = [
        one.highest < (_SURE_IF_NARROW if component.width < narrow else _SURE)
        for component, one in zip(components, whole, strict=True)
    ]
    places = cuts.places(ink, components, is_unsure)
    lattice = Lattice(components, places, cuts.regions(components, places), {})
    known: dict[tuple[Component, ...], _Classified] = {
        (component,): one for component, one in zip(components, whole, strict=True)
    }
    reached = {number for number, place in enumerate(places) if place.cut is None}
    waiting = reached
    while waiting:
        some = [region for region in lattice.regions if region.start in waiting and region.may_be_digit]
        parts = [region for region in some if region.pieces not in known]
        known.update(zip((region.pieces for region in parts), _classified(ink, parts, predict), strict=True))
        lattice.classified.update({region: known[region.pieces] for region in some})
        waiting = {region.end for region in some if lattice.classified[region].highest > _REACHED} - reached
        reached = reached | waiting
    return lattice


def _classified(ink: Ink, regions: Sequence[Region], predict: Callable[[Images], Output]) -> list[_Classified]:
    if not regions:
        return []
    images = np.stack([cuts.image(ink, region) for region in regions])
    output = predict(images)
    logs = np.log(np.maximum(output.probabilities, 1e-12))
    return list(map(_Classified, images, *output, logs))


def _log_sigmoid(log_odds: float) -> float:
    """The log-probability."""
    return -log1p(exp(-log_odds)) if log_odds > 0 else log_odds - log1p(exp(log_odds))


def _search(edges: list[list[_Edge]], patterns: Patterns) -> dict[str, _Hypothesis]:
    """The texts of a whole line with their weights."""
    places: list[dict[str, _Hypothesis]] = [{} for _ in range(len(edges) + 1)]
    places[0][""] = _Hypothesis(0.0, 0.0)
    may_fit, ahead = cache(patterns.may_fit), _best_ahead(edges)
    for place, following in enumerate(edges):
        kept = sorted(places[place].items(), key=lambda one: -one[1].total)[:BEAM]
        for text, hypothesis in kept:
            for edge in following:
                total, best = hypothesis.total + edge.weight, hypothesis.best + edge.weight
                longer = text + edge.text
                if total + ahead[edge.region.end] < ahead[0] - _MAX_BEHIND or not may_fit(longer, True):
                    continue
                known_one = places[edge.region.end].setdefault(longer, _Hypothesis())
                known_one.total = _add(known_one.total, total)
                if best > known_one.best:
                    known_one.best, known_one.path = best, _Path(hypothesis.path, edge)
    return {text: one for text, one in places[-1].items() if may_fit(text, False)}


def _best_ahead(edges: list[list[_Edge]]) -> list[float]:
    """The weight of the best way from each place to the end."""
    ahead = [0.0] * (len(edges) + 1)
    for place in range(len(edges) - 1, -1, -1):
        ahead[place] = max((edge.weight + ahead[edge.region.end] for edge in edges[place]), default=-inf)
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
            digits.append(ReadDigit(int(sign), region.box, image, probabilities, digit_score))
        elif not sign and region.may_be_digit:
            left_out += 1
        path = path.before
    return Reading(text, confidence, fits, digits[::-1], left_out)
