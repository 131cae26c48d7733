"""What to label next: logged answers and training images, the most informative first.

The audit sample comes first, because accuracy is measured on it alone; then what a model learns most from: answers of little confidence
(Lewis and Gale 1994, "A sequential algorithm for training text classifiers") and those on which champion and challenger disagree
(Seung et al. 1992, "Query by committee"); then doubtful labels. Who labels an image sees neither an answer nor a label: people tend to
agree with what they are shown.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, get_args

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, insert, select

from digits.images import SIZE
from digits.storage import database, feedback, labels, predictions, suspected_labels
from digits.storage.labels import AUDITOR
from digits.storage.predictions import batches

Queue = Literal["audit", "uncertain", "disagreement", "quarantine", "suspected"]
QUEUES: tuple[Queue, ...] = get_args(Queue)
OF_AUDITORS: frozenset[Queue] = frozenset({"audit", "quarantine", "suspected"})  # labels of others decide nothing there
MAX_LENGTH = 500  # of each queue
MAX_ROWS = 2_000  # of the log with answers of the audit sample that are searched, the newest ones
MAX_ANSWERS = 20_000  # that are searched for uncertain ones, the newest ones

disagreements = sa.Table(
    "disagreements",
    database.metadata,
    sa.Column("prediction_id", sa.String(32), primary_key=True),
    sa.Column("challenger", sa.String(32), nullable=False),
)


class QueuedImage(NamedTuple):
    """An image to label."""

    id: str  # of the prediction, or the digest of a training image
    queue: Queue
    image: NDArray[np.uint8]  # (28, 28)


def waiting(
    engine: Engine, version: str, since: datetime, uncertain_below: float, is_auditor: bool
) -> dict[Queue, list[str]]:
    """The ids in each queue, of answers since then; at most MAX_LENGTH each, and none in two queues.

    `version` is the one that is served, whose audit sample comes first. Others than auditors get the queues in which their labels count.
    """
    done = _labelled(engine, AUDITOR if is_auditor else None, since)
    found: dict[Queue, list[str]] = {
        "audit": _audit_sample(engine, version, since) if is_auditor else [],
        "uncertain": _uncertain(engine, since, uncertain_below),
        "disagreement": _disagreements(engine),
        "quarantine": feedback.quarantined_ids(engine, MAX_LENGTH) if is_auditor else [],
        "suspected": suspected_labels.waiting(engine, MAX_LENGTH) if is_auditor else [],
    }
    everyones = done if not is_auditor else done | _labelled(engine, None, since)
    seen: set[str] = set()
    for queue, ids in found.items():
        skipped = seen | (done if queue in OF_AUDITORS else everyones)
        found[queue] = [id for id in ids if id not in skipped][:MAX_LENGTH]
        seen.update(found[queue])
    return found


def read(engine: Engine, queued: Iterable[tuple[str, Queue]]) -> list[QueuedImage]:
    """The images of ids, in their order, without those that are gone meanwhile."""
    queues = dict(queued)
    known = suspected_labels.images(engine, [id for id, queue in queues.items() if queue == "suspected"])
    window = predictions.read(engine, [id for id, queue in queues.items() if queue != "suspected"])
    images = {id: np.frombuffer(image, np.uint8).reshape(SIZE, SIZE) for id, image in known.items()}
    images |= dict(zip(window.ids, window.images, strict=True))
    return [QueuedImage(id, queue, images[id]) for id, queue in queues.items() if id in images]


def label(engine: Engine, id: str, label: int, source: str) -> None:
    """Record the label of a prediction, or of a suspected training image if the source is an auditor's.

    Raises UnknownPrediction where there is neither.
    """
    if not (source == AUDITOR and suspected_labels.decide(engine, id, label, source)):
        predictions.label(engine, id, label, source)


def withdraw(engine: Engine, id: str, source: str) -> bool:
    """Take back this source's most recent label; False where a retraining has ingested it."""
    is_decision = source == AUDITOR and suspected_labels.decide(engine, id, None, source)
    return is_decision or feedback.withdraw(engine, id, source)


def replace_disagreements(engine: Engine, challenger: str, ids: Sequence[str]) -> None:
    """Replace the answers that the challenger would have given otherwise."""
    with engine.begin() as connection:
        connection.execute(delete(disagreements))
        if ids:
            connection.execute(insert(disagreements), [{"prediction_id": id, "challenger": challenger} for id in ids])


def _labelled(engine: Engine, source: str | None, since: datetime) -> set[str]:
    """The ids of predictions since then that this source has labelled, or with None anybody."""
    given = labels.feedback.c
    query = select(given.prediction_id).where(given.prediction_id >= predictions.first_id_at(since)).distinct()
    with engine.connect() as connection:
        return set(connection.scalars(query if source is None else query.where(given.source == source)))


def _audit_sample(engine: Engine, version: str, since: datetime) -> list[str]:
    """Ids of the audit sample, those of the version first, each in random order: the first in time show the digits of one hour."""
    query = select(batches.c.version, batches.c.ids, batches.c.audit)
    query = query.where(batches.c.at >= since, batches.c.audit.is_not(None)).order_by(batches.c.at.desc())
    found: list[tuple[bool, str, str]] = []
    with engine.connect() as connection:
        for by, ids, audit in connection.execute(query.limit(MAX_ROWS)):
            of_row = predictions.ids_of(ids)
            drawn = (of_row[position] for position in np.frombuffer(audit, np.uint16))
            found += [(by != version, id[predictions.TIME_DIGITS :], id) for id in drawn]
    return [id for *_, id in sorted(found)]


def _uncertain(engine: Engine, since: datetime, uncertain_below: float) -> list[str]:
    """Ids of answers with little confidence, the least first; of those with equal probabilities, which show the same image, one."""
    query = select(batches.c.ids, batches.c.probabilities).where(batches.c.at >= since).order_by(batches.c.at.desc())
    ids, parts = [], [np.empty((0, 10), np.float32)]
    with engine.connect() as connection:
        for of_row, probabilities in connection.execute(query.execution_options(yield_per=predictions.READ_ROWS)):
            ids += predictions.ids_of(of_row)
            parts.append(np.frombuffer(probabilities, np.float32).reshape(-1, 10))
            if len(ids) >= MAX_ANSWERS:
                break
    probabilities = np.concatenate(parts)
    confidence = probabilities.max(axis=1)
    rows = np.flatnonzero(confidence < uncertain_below)
    distinct: dict[bytes, str] = {}
    for row in rows[np.argsort(confidence[rows], kind="stable")]:
        distinct.setdefault(probabilities[row].tobytes(), ids[row])
    return list(distinct.values())


def _disagreements(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        query = select(disagreements.c.prediction_id).order_by(disagreements.c.prediction_id.desc())
        return list(connection.scalars(query.limit(MAX_LENGTH)))
