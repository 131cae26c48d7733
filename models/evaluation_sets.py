"""Evaluation sets: the labelled images that candidates are judged on, each with a name and a fingerprint.

`anchor` stays the same from the first champion on until somebody pins another; `champion` is what the champion was judged on;
`candidate` is the test part of the data that the candidate learned from; `traffic` is the newest audited answers. The first three
are test parts of stored data sets. Sets, digits of a set and corruptions can be retired; all of that is in the ledger.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from digits.data import datasets
from digits.data.datasets import BadData, Dataset, DatasetStore
from digits.images import Split
from digits.storage import feedback, ledger, locks
from digits.storage.ledger import Entry
from models.evaluation import CORRUPTIONS
from models.model_store import ModelStore
from models.registry_reader import VersionNotFound

ANCHOR, CHAMPION, CANDIDATE, TRAFFIC = SETS = ("anchor", "champion", "candidate", "traffic")


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Labelled images under a name."""

    name: str
    split: Split
    source: str
    since: datetime | None = None  # UTC; of the pin, the promotion or the oldest answer
    clients: Sequence[str] = ()  # who sent each image, "" where unknown; empty where nobody did
    routes: Sequence[str] = ()  # by which each image came
    best_accuracy: float | None = None  # that a champion reached on this set since it was last changed

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over images and labels."""
        return hashlib.sha256(self.split.images.tobytes() + self.split.labels.tobytes()).hexdigest()[:16]


def assemble(
    storage: DatasetStore, store: ModelStore, engine: Engine, candidate: Dataset, current: str | None, retired: Set[str]
) -> list[EvaluationSet]:
    """The sets on which a candidate that learned from this data set is judged against the current champion.

    Before the first champion it is `candidate` alone. Raises BadData where the data set of another one is not stored.
    """
    named = {} if current is None else stored_sets(store, engine, current)
    named[CANDIDATE] = candidate.fingerprint, None
    loaded = {candidate.fingerprint: candidate}
    sets = []
    for name, (fingerprint, since) in named.items():
        if name in retired and current is not None:
            continue
        if fingerprint not in loaded:
            loaded[fingerprint] = _load(storage, name, fingerprint)
        dataset = loaded[fingerprint]
        source = f"test part of data set {fingerprint} ({dataset.source})"
        best = best_accuracy(engine) if name == ANCHOR else None
        sets.append(EvaluationSet(name, dataset.test, source, since, best_accuracy=best))
    traffic = feedback.audited_traffic(engine)
    if traffic is not None and current is not None and TRAFFIC not in retired:
        facts = "audited answers", traffic.since, traffic.clients, traffic.routes
        sets.append(EvaluationSet(TRAFFIC, Split(traffic.images, traffic.labels), *facts))
    return sets


def distinct(sets: Iterable[EvaluationSet]) -> list[EvaluationSet]:
    """Without those that have the images of an earlier one, which are judged once."""
    return list({evaluation_set.fingerprint: evaluation_set for evaluation_set in reversed([*sets])}.values())[::-1]


def stored_sets(store: ModelStore, engine: Engine, current: str) -> dict[str, tuple[str, datetime | None]]:
    """The data set of `anchor` and of `champion`, by its fingerprint, and since when it is that."""
    pin_first_anchor(store, engine)
    pin = _pins(engine)[-1]
    champion = json.loads(store.registry.download(current, "card.json"))["dataset"]
    promoted = [entry.at for entry in ledger.replacements(engine) if entry.after == current]
    return {ANCHOR: (str(pin.after), pin.at), CHAMPION: (champion, promoted[-1] if promoted else None)}


def pin_first_anchor(store: ModelStore, engine: Engine) -> None:
    """Freeze what the first champion was judged on as the anchor, unless one is pinned or there is no champion."""
    current = store.registry.version()
    if current is None or _pins(engine):
        return
    champions = [entry.before or entry.after for entry in ledger.replacements(engine)[:1]]
    for version in [*champions, current]:
        try:
            card = json.loads(store.registry.download(str(version), "card.json"))
        # The first champion may have been deleted since.
        except VersionNotFound:
            continue
        reason = f"the test part that the first champion, digits v{version}, was judged on"
        with locks.decision(engine):
            if not _pins(engine):
                ledger.append(engine, "pin", None, card["dataset"], reason, {}, subject=ANCHOR)
        return


def pin(engine: Engine, fingerprint: str, reason: str) -> None:
    """Make the test part of a stored data set the anchor; raises ValueError where it is.

    Pinned again, it would forget the best that a champion reached on it, and what is retired of it.
    """
    with locks.decision(engine):
        pins = _pins(engine)
        before = pins[-1].after if pins else None
        if before == fingerprint:
            raise ValueError(f"the anchor is the test part of {fingerprint} already")
        ledger.append(engine, "pin", before, fingerprint, reason, {}, subject=ANCHOR)


def retired(engine: Engine) -> dict[str, Entry]:
    """What is excluded from judgements, by name, with the decision.

    What is retired of the anchor ends with the next pin, and of `champion` with the next champion: they are other images then.
    """
    found: dict[str, Entry] = {}
    for entry in ledger.entries(engine):
        if entry.action == "retirement":
            found[entry.subject] = entry
        elif entry.action == "reinstatement":
            found.pop(entry.subject, None)
        elif entry.action == "pin" or entry.replaces_champion:
            found = {name: decision for name, decision in found.items() if not _is_of(entry.subject, name)}
    return found


def retire(engine: Engine, name: str, reason: str) -> None:
    """Exclude a set, a digit of a set or a corruption from all judgements; raises ValueError for another name."""
    if name not in names():
        raise ValueError(f'there is no evaluation set "{name}"; see `digits evaluations` for the names')
    with locks.decision(engine):
        if name in retired(engine):
            raise ValueError(f"{name} is retired already; `digits evaluations reinstate` includes it again")
        ledger.append(engine, "retirement", None, None, reason, {}, subject=name)


def reinstate(engine: Engine, name: str, reason: str) -> None:
    """Include it in judgements again; raises ValueError where it is not retired."""
    with locks.decision(engine):
        if name not in retired(engine):
            raise ValueError(f"{name} is not retired; `digits evaluations` lists what is")
        ledger.append(engine, "reinstatement", None, None, reason, {}, subject=name)


def names() -> list[str]:
    """Everything that can be retired."""
    by_digit = [f"{name} digit {digit}" for name in SETS for digit in range(10)]
    return [*SETS, *by_digit, *map(corruption_name, CORRUPTIONS)]


def corruption_name(corruption: str) -> str:
    return f"corruption {corruption}"


def best_accuracy(engine: Engine) -> float | None:
    """The best that a champion reached on the anchor since it or what is retired of it changed; None where unknown."""
    entries = ledger.entries(engine)
    changed = max((entry.number for entry in entries if _is_of(ANCHOR, entry.subject)), default=0)
    measured = [
        entry.evidence[name]
        for entry in entries
        for name in (f"{ANCHOR}: accuracy", f"{ANCHOR}: champion accuracy")
        if entry.action == "promotion" and entry.number > changed and name in entry.evidence
    ]
    return max(measured, default=None)


def rows_in_use(evaluation_set: EvaluationSet, retired: Set[str]) -> NDArray[np.bool_]:
    """Which of its images are of no retired digit, (n,)."""
    digits = [digit for digit in range(10) if f"{evaluation_set.name} digit {digit}" in retired]
    return ~np.isin(evaluation_set.split.labels, digits)


def _is_of(evaluation_set: str, name: str) -> bool:
    """Whether this is the name of the set or of one of its digits."""
    return name == evaluation_set or name.startswith(f"{evaluation_set} ")


def _pins(engine: Engine) -> list[Entry]:
    return [entry for entry in ledger.entries(engine, ANCHOR) if entry.action == "pin"]


def _load(storage: DatasetStore, name: str, fingerprint: str) -> Dataset:
    try:
        return datasets.load(storage, fingerprint)
    except BadData as error:
        fix = f'or give up the set with `digits evaluations retire {name} --reason "…"`'
        raise BadData(f"the evaluation set {name}: {error}, {fix}") from error
