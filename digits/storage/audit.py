"""The labelled audit sample: whether a version's answers to images drawn at random were right, and when labels came."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, func, select

from digits.images import NO_DIGIT
from digits.storage import predictions
from digits.storage.feedback import IngestedLabel, digest, new_labels
from digits.storage.labels import AUDITOR, feedback

MIN_LABELS = 50  # of a version; with fewer, monitoring claims nothing of its accuracy but a fall


class AuditedAnswer(NamedTuple):
    """One answer of the audit sample that an auditor has labelled."""

    id: str
    at: datetime  # of the answer, UTC
    client: str  # who sent the image, "" where unknown
    is_right: bool
    probability: float  # of the predicted digit


class _Labelled(NamedTuple):
    image: bytes
    label: int
    answer: AuditedAnswer


def is_right(
    digits: NDArray[Any], labels: NDArray[Any], digit_scores: NDArray[Any], digit_threshold: float | None
) -> NDArray[np.bool_]:
    """Which answers agree with their labels, (n,): in the digit, or in that there is none (`is_digit` was false).

    Where the label is a digit, its answer is right whatever `is_digit` was.
    """
    refused = digit_scores < (-np.inf if digit_threshold is None else digit_threshold)
    agrees: NDArray[np.bool_] = np.where(labels == NO_DIGIT, refused, digits == labels)
    return agrees


def answers(engine: Engine, version: str, since: datetime, until: datetime) -> Sequence[AuditedAnswer]:
    """The labelled audit sample of the version's answers from `since` up to but not including `until`, oldest answer first.

    Labels that a retraining ingested are known for longer than the prediction log keeps their answers. Of answers to the same
    image, as an uptime probe sends it, the oldest one counts. Images of no digit are left out: the accuracy that is expected of a
    version is one on digits.
    """
    found = _ingested(engine, version, since, until)
    live = predictions.read_window(engine, since, until, version=version, labelled=True)
    for n in np.flatnonzero(live.audited):
        label, agrees = int(live.labels[n]), bool(live.digits[n] == live.labels[n])
        answer = AuditedAnswer(live.ids[n], live.at[n], live.clients[n], agrees, float(live.probabilities[n].max()))
        found[answer.id] = _Labelled(live.images[n].tobytes(), label, answer)
    digits = [one for one in found.values() if one.label != NO_DIGIT]
    ordered = sorted(digits, key=lambda one: (one.answer.at, one.answer.id), reverse=True)
    oldest = {digest(one.image): one.answer for one in ordered}.values()
    return sorted(oldest, key=lambda answer: (answer.at, answer.id))


def _ingested(engine: Engine, version: str, since: datetime, until: datetime) -> dict[str, _Labelled]:
    """The ingested labels of the audit sample by the id of the prediction."""
    row = IngestedLabel
    columns = row.image, row.label, row.prediction_id, row.predicted_at, row.client, row.predicted, row.probability
    of_version = row.audited, row.version == version, row.predicted_at >= since, row.predicted_at < until
    with engine.connect() as connection:
        return {
            id: _Labelled(image, label, AuditedAnswer(id, at, client, predicted == label, probability))
            for image, label, id, at, client, predicted, probability in connection.execute(
                select(*columns).where(*of_version)
            )
        }


def count(engine: Engine, version: str) -> int:
    """The number of the version's labelled answers of the audit sample, as `answers` has them."""
    row = IngestedLabel
    query = select(row.prediction_id, row.digest, row.label).where(row.audited, row.version == version)
    with engine.connect() as connection:
        found = {id: (digest, label) for id, digest, label in connection.execute(query)}
        new = predictions.read_labelled(connection, new_labels(feedback.c.source == AUDITOR))
    for n in np.flatnonzero(new.audited & (np.array(new.versions) == version)):
        found[new.ids[n]] = digest(new.images[n].tobytes()), int(new.labels[n])
    return len({image for image, label in found.values() if label != NO_DIGIT})


def last_label(engine: Engine) -> datetime | None:
    """When an auditor gave the newest label, UTC; None before the first.

    Labels are deleted with their predictions; then it is when the newest one was ingested.
    """
    logged = select(func.max(feedback.c.at)).where(feedback.c.source == AUDITOR)
    ingested = select(func.max(IngestedLabel.ingested_at)).where(IngestedLabel.source == AUDITOR)
    with engine.connect() as connection:
        return connection.scalar(logged) or connection.scalar(ingested)
