"""What to label next: logged answers and training images, the most informative first.

The audit sample comes first, because accuracy is measured on it alone; then what a model learns most from: answers of little confidence
(Lewis and Gale 1994, "A sequential algorithm for training text classifiers") and those on which champion and challenger disagree
(Seung et al. 1992, "Query by committee"); then doubtful labels. Who labels an image sees neither an answer nor a label: people tend to
agree with what they are shown.
"""

import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Engine, Row, delete, insert, select

from digits.images import SIZE
from digits.storage import database, feedback, labels, predictions, suspected_labels
from digits.storage.labels import AUDITOR
from digits.storage.predictions import Known, batches

Queue = Literal["audit", "uncertain", "disagreement", "quarantine", "suspected"]
QUEUES: tuple[Queue, ...] = get_args(Queue)
OF_AUDITORS: frozenset[Queue] = frozenset({"audit", "quarantine", "suspected"})  # labels of others decide nothing there
MAX_LENGTH = 500  # of each queue
# The newest rows of the log with answers of the audit sample, and the newest labels in quarantine, that are searched.
MAX_ROWS = 2_000
POOL_FACTOR = 4  # images are drawn from a pool this many times as large as the request
MAX_ANSWERS = 20_000  # that are searched for uncertain ones, the newest ones

disagreements = sa.Table(
    "disagreements",
    database.metadata,
    sa.Column("prediction_id", sa.String(32), primary_key=True),
    sa.Column("challenger", sa.String(32), nullable=False),
)


def waiting(
    engine: Engine, version: str, since: datetime, uncertain_below: float, client: str | None
) -> dict[Queue, list[str]]:
    """The ids in each queue, of answers since then; at most MAX_LENGTH each, and none in two queues.

    `version` is the one that is served, whose audit sample comes first. Others than auditors get the queues in which their labels
    count, with answers to `client`, the name of their key, or to `client/…`; for auditors it is None. They label what was drawn for
    the audit sample in random order, or accuracy would be measured on the least certain of them: no other queue has it.
    """
    is_auditor = client is None
    found: dict[Queue, list[str]] = {
        "audit": _audit_sample(engine, version, since) if is_auditor else [],
        "uncertain": _uncertain(engine, since, uncertain_below, client),
        "disagreement": _disagreements(engine, client),
        "quarantine": feedback.quarantined_ids(engine, MAX_ROWS) if is_auditor else [],
        "suspected": suspected_labels.waiting(engine, MAX_LENGTH) if is_auditor else [],
    }
    seen: set[str] = set()
    for queue, ids in found.items():
        skipped = seen | labels.labelled(engine, ids, AUDITOR if queue in OF_AUDITORS else None)
        found[queue] = [id for id in ids if id not in skipped][:MAX_LENGTH]
        seen.update(found[queue])
    return found


def draw(queue: Queue, ids: Sequence[str], count: int) -> list[str]:
    """So many ids of a queue, at random from the first POOL_FACTOR times as many: who labels at the same time seldom gets the same ones.

    The audit sample is in random order already.
    """
    first = ids[: count if queue == "audit" else POOL_FACTOR * count]
    return list(first) if queue == "audit" else random.sample(first, min(count, len(first)))


def images(engine: Engine, queues: Mapping[str, Queue]) -> dict[str, NDArray[np.uint8]]:
    """The images (28, 28) of these ids in queues, in their order, without those that are gone meanwhile."""
    known = suspected_labels.images(engine, [id for id, queue in queues.items() if queue == "suspected"])
    window = predictions.read(engine, [id for id, queue in queues.items() if queue != "suspected"])
    found = {id: np.frombuffer(image, np.uint8).reshape(SIZE, SIZE) for id, image in known.items()}
    found |= dict(zip(window.ids, window.images, strict=True))
    return {id: found[id] for id in queues if id in found}


def label(engine: Engine, id: str, label: int, source: str) -> int | None:
    """Record the label of a prediction, or of a suspected training image if the source is an auditor's.

    Returns the number of the label, by which `withdraw` finds it; None where nothing was stored because the same label counts
    already, and for a training image. Raises UnknownPrediction where there is neither.
    """
    if source == AUDITOR and suspected_labels.decide(engine, id, label, source):
        return None
    return predictions.label(engine, id, label, source)


def withdraw(engine: Engine, id: str, source: str, number: int | None = None) -> bool:
    """Take back this source's label with this number, or its most recent one; False where a retraining has ingested it.

    Raises UnknownPrediction where there is neither a prediction nor, for auditors, a suspected training image with this id.
    """
    if source == AUDITOR and suspected_labels.decide(engine, id, None, source):
        return True
    predictions.check(engine, id)
    return feedback.withdraw(engine, id, source, number)


def replace_disagreements(engine: Engine, challenger: str, ids: Sequence[str]) -> None:
    """Replace the answers that the challenger would have given otherwise."""
    with engine.begin() as connection:
        connection.execute(delete(disagreements))
        if ids:
            connection.execute(insert(disagreements), [{"prediction_id": id, "challenger": challenger} for id in ids])


def _is_offered(one: Known, client: str | None) -> bool:
    """Whether an answer is for auditors (None), who have those of the audit sample in its own queue, or to this client."""
    return not one.is_drawn if client is None else one.client == client or one.client.startswith(f"{client}/")


def _audit_sample(engine: Engine, version: str, since: datetime) -> list[str]:
    """Ids of the audit sample, those of the version first, each in random order: the first in time show the digits of one hour.

    The order is another one each time, so that two auditors seldom label the same image.
    """
    query = select(batches.c.version, batches.c.ids, batches.c.audit)
    query = query.where(batches.c.at >= since, batches.c.audit.is_not(None)).order_by(batches.c.at.desc())
    found: list[tuple[bool, float, str]] = []
    with engine.connect() as connection:
        for by, ids, audit in connection.execute(query.limit(MAX_ROWS)):
            of_row = predictions.ids_of(ids)
            drawn = (of_row[position] for position in np.frombuffer(audit, np.uint16))
            found += [(by != version, random.random(), id) for id in drawn]
    return [id for *_, id in sorted(found)]


def _uncertain(engine: Engine, since: datetime, uncertain_below: float, client: str | None) -> list[str]:
    """Ids of answers with little confidence, the least first; of those with equal probabilities, which show the same image, one."""
    columns = batches.c.ids, batches.c.probabilities, batches.c.clients, batches.c.audit
    query = select(*columns).where(batches.c.at >= since).order_by(batches.c.at.desc())
    searched, found = 0, list[tuple[float, str, bytes]]()
    with engine.connect() as connection:
        for rows in connection.execute(query.execution_options(yield_per=predictions.READ_ROWS)).partitions():
            for row in _with_uncertain(rows, uncertain_below):
                ids = predictions.ids_of(row.ids)
                probabilities = _probabilities([row])
                confidence = probabilities.max(axis=1)
                positions = np.flatnonzero(confidence < uncertain_below).tolist()
                found += [
                    (float(confidence[n]), ids[n], probabilities[n].tobytes())
                    for n, one in zip(positions, predictions.known_at(row, positions), strict=True)
                    if _is_offered(one, client)
                ]
            searched += len(_probabilities(rows))
            if searched >= MAX_ANSWERS:
                break
    distinct: dict[bytes, str] = {}
    for _, id, answer in sorted(found, key=lambda one: one[0]):
        distinct.setdefault(answer, id)
    return list(distinct.values())


def _with_uncertain(rows: Sequence[Row[Any]], uncertain_below: float) -> list[Row[Any]]:
    """Those of the rows that hold an uncertain answer; few do, and to look at each takes longer than at all at once."""
    of_row = np.repeat(np.arange(len(rows)), [len(row.ids) // predictions.ID_BYTES for row in rows])
    return [rows[n] for n in np.unique(of_row[_probabilities(rows).max(axis=1) < uncertain_below])]


def _probabilities(rows: Sequence[Row[Any]]) -> NDArray[np.float32]:
    """The probabilities (n, 10) of all answers of the rows."""
    return np.frombuffer(b"".join(row.probabilities for row in rows), np.float32).reshape(-1, 10)


def _disagreements(engine: Engine, client: str | None) -> list[str]:
    found = predictions.known(engine, select(disagreements.c.prediction_id))
    return sorted((id for id, one in found.items() if _is_offered(one, client)), reverse=True)
