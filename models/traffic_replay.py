"""`digits replay-traffic`: logged, labelled traffic answered again by any version and by the champion, for a person to compare them.

Nothing is decided by it. The gate judges by its own rules and on audited labels alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from digits import intervals
from digits.data.datasets import digests
from digits.images import NO_DIGIT, Labels
from digits.intervals import Proportion
from digits.storage import predictions
from digits.storage.predictions import PredictionWindow
from models import challengers
from models.gate import EvaluationSample
from models.model_store import ModelStore
from models.registry_reader import version_number


@dataclass(frozen=True, eq=False)
class Comparison:
    """The version and the champion on the same labelled images."""

    sample: EvaluationSample  # "audited", "audited digit 3", "volunteered", …; the version is its candidate

    @property
    def version(self) -> Proportion:
        return _accuracy(self.sample.candidate, self.sample.labels)

    @property
    def champion(self) -> Proportion:
        return _accuracy(self.sample.champion, self.sample.labels)

    @property
    def p_value(self) -> float:
        """Two-sided, of the gate's test, for which the images of one client are not independent."""
        return min(1.0, 2 * min(self.sample.p_value, self.sample.loss_p_value))


@dataclass(frozen=True)
class TrafficReplay:
    """The comparisons, and how many labelled images are in none of them."""

    version: str
    champion: str
    comparisons: list[Comparison]  # audited labels and those that others volunteered, each in all and by digit
    trained_on: dict[str, int]  # by version: how many images were left out because it was trained on them
    repeated: int  # images that came again, of which the newest answer counts


def replay(store: ModelStore, engine: Engine, version: str, since: datetime) -> TrafficReplay:
    """Compare a version with the champion on the labelled traffic since then that neither was trained on.

    Raises ValueError for what is no other version, and LookupError where there is no such version, champion or traffic.
    """
    version = version_number(version)
    champion = store.registry.alias_target("champion").version
    if version == champion:
        raise ValueError(f"digits v{version} is the champion; give another version to compare it with")
    store.fetch_version(version)
    window = predictions.read_window(engine, since, labelled=True)
    if not (window.labels != NO_DIGIT).any():
        fix = "label some at /label, or give an earlier --since"
        raise LookupError(f"no answer since {since:%Y-%m-%d %H:%M} UTC has a label; {fix}")
    newest = _newest(window)
    seen = {one: challengers.trained_on(store, window.images, one) for one in (version, champion)}
    used = newest & ~seen[version] & ~seen[champion] & (window.labels != NO_DIGIT)
    if not used.any():
        problem = f"all {newest.sum()} labelled images since {since:%Y-%m-%d %H:%M} UTC were trained on"
        raise LookupError(f"{problem} by v{version} or v{champion}; give an earlier --since")
    trained_on = {one: int((newest & rows).sum()) for one, rows in seen.items()}
    comparisons = list(_compare(store, window, used, version, champion))
    return TrafficReplay(version, champion, comparisons, trained_on, int((~newest).sum()))


def _newest(window: PredictionWindow) -> NDArray[np.bool_]:
    """Whether each image, (n,), is the newest of those with the same bytes."""
    _, last = np.unique(digests(window.images)[::-1], return_index=True)
    rows = np.zeros(len(window), np.bool_)
    rows[len(window) - 1 - last] = True
    return rows


def _compare(
    store: ModelStore, window: PredictionWindow, used: NDArray[np.bool_], version: str, champion: str
) -> Iterator[Comparison]:
    models = [store.fetch_version(one) for one in (version, champion)]
    a, b = (model.predict_proba(window.images).argmax(axis=1).astype(np.uint8) for model in models)
    labels = window.labels.astype(np.uint8)
    for source, rows in (("audited", used & window.audited), ("volunteered", used & ~window.audited)):
        if rows.any():
            clients = [window.clients[row] for row in np.flatnonzero(rows)]
            sample = EvaluationSample(source, labels[rows], a[rows], b[rows], clients)
            yield Comparison(sample)
            for digit in np.unique(sample.labels):
                yield Comparison(sample.rows(f"digit {digit}", sample.labels == digit))


def _accuracy(answers: Labels, labels: Labels) -> Proportion:
    return intervals.wilson(int((answers == labels).sum()), len(labels))
