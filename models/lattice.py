"""The lattice of a line: all segmentations of its ink into digits, weighed by the model and by the shape of the parts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, log, log1p
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digits.images import Images
from digits.pictures import components, regions, separators
from digits.pictures.components import Component
from digits.pictures.ink import Ink
from digits.pictures.regions import Node, Region
from digits.pictures.text_lines import DIGIT_HEIGHT
from models.onnx_model import Output

# Log-probabilities: of a digit that is followed further, of one after which another may begin, and of a component that is not cut.
_MIN_LOG, _REACHED, _SURE, _SURE_IF_NARROW = log(1e-3), log(0.02), log(0.98), log(0.6)
# Log-weights in nats, chosen near those of the maximum likelihood for lines of MNIST's training digits, some with letters among them.
_CUT, _PER_CROSSED = 3.5, -11.5  # of a cut, and per digit height of ink that it crosses
_JOINED, _PER_GAP = -3.0, -5.9  # of a component put to others, and per digit height of paper between them
_LEFT_OUT, _PER_SIZE = -5.0, -13.0  # of ink that is dirt, and per digit height of its longer side
_PER_HEIGHT = -6.0  # per e-fold by which a digit is higher or lower than those of the line
_PER_NARROW, _PER_WIDE = -1.5, -3.5  # per e-fold by which a digit is narrower, unless it is a 1, or wider than usual
_PER_IS_DIGIT = 2.0  # per nat of the log-probability that a region is a digit
_AGAINST_CUT = 6.0  # prior log-odds against a digit in a region that is cut out, relative to whole components
_WIDTH = 0.7  # of a digit in digit heights

Image = NDArray[np.uint8]  # (28, 28)


class Classified(NamedTuple):
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


@dataclass(frozen=True)
class Edge:
    """What a region may be: a digit, a separator, or with no text dirt."""

    region: Region
    text: str
    weight: float


@dataclass(frozen=True, eq=False)
class Lattice:
    """All that the regions of a line may be."""

    components: list[Component]
    nodes: list[Node]
    regions: list[Region]
    classified: dict[Region, Classified]

    def edges(self) -> list[list[Edge]]:
        """What may begin at each node."""
        edges: list[list[Edge]] = [[] for _ in self.nodes[1:]]
        for region in self.regions:
            edges[region.start] += self._edges_of(region)
        return edges

    def _edges_of(self, region: Region) -> Iterator[Edge]:
        cut = self.nodes[region.start].cut
        weight = _CUT + _PER_CROSSED * cut.crossed if cut else 0.0
        is_whole = self.nodes[region.start].cut is None and self.nodes[region.end].cut is None
        if len(region.pieces) == 1:
            signs = separators.log_weights(self.components, region.pieces[0]) if is_whole else {}
            yield from (Edge(region, sign, weight) for sign, weight in signs.items())
            if is_whole or not region.may_be_digit:
                yield Edge(region, "", weight + _LEFT_OUT + _PER_SIZE * max(region.height, region.width))
        if region in self.classified:
            one = self.classified[region]
            weight += _JOINED * (len(region.pieces) - 1) + _PER_GAP * region.gap + _PER_HEIGHT * abs(log(region.height))
            weight += _PER_IS_DIGIT * _log_sigmoid(one.log_odds - (0.0 if is_whole else _AGAINST_CUT))
            weight += _PER_WIDE * max(0.0, log(region.width / _WIDTH))
            narrow = _PER_NARROW * max(0.0, log(_WIDTH / region.width))
            for digit in np.flatnonzero(one.logs > _MIN_LOG).tolist():
                yield Edge(region, str(digit), weight + float(one.logs[digit]) + (narrow if digit != 1 else 0.0))


def lattice_of(ink: Ink, predict: Callable[[Images], Output]) -> Lattice:
    """The lattice of a line; only components that are not surely one digit are cut."""
    found = components.components(ink)
    whole = _classified(ink, [regions.region(0, 0, component) for component in found], predict)
    narrow = _WIDTH * DIGIT_HEIGHT
    is_unsure = [
        one.highest < (_SURE_IF_NARROW if component.width < narrow else _SURE)
        for component, one in zip(found, whole, strict=True)
    ]
    nodes = regions.nodes(ink, found, is_unsure)
    lattice = Lattice(found, nodes, regions.regions(found, nodes), {})
    known: dict[tuple[Component, ...], Classified] = {
        (component,): one for component, one in zip(found, whole, strict=True)
    }
    reached = {number for number, node in enumerate(nodes) if node.cut is None}
    waiting = reached
    while waiting:
        some = [region for region in lattice.regions if region.start in waiting and region.may_be_digit]
        parts = [region for region in some if region.pieces not in known]
        known.update(zip((region.pieces for region in parts), _classified(ink, parts, predict), strict=True))
        lattice.classified.update({region: known[region.pieces] for region in some})
        waiting = {region.end for region in some if lattice.classified[region].highest > _REACHED} - reached
        reached = reached | waiting
    return lattice


def _classified(ink: Ink, candidates: Sequence[Region], predict: Callable[[Images], Output]) -> list[Classified]:
    if not candidates:
        return []
    images = np.stack([regions.image(ink, region) for region in candidates])
    output = predict(images)
    logs = np.log(np.maximum(output.probabilities, 1e-12))
    return list(map(Classified, images, *output, logs))


def _log_sigmoid(log_odds: float) -> float:
    """log(1 / (1 + exp(-log_odds))), without overflow."""
    return -log1p(exp(-log_odds)) if log_odds > 0 else log_odds - log1p(exp(log_odds))
