"""The labelled audit sample: whether a version's answers to images drawn at random were right, and when labels came."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
from sqlalchemy import Engine, func, select

from digits.storage import predictions
from digits.storage.feedback import IngestedLabel, digest
from digits.storage.labels import AUDITOR, feedback


class AuditedAnswer(NamedTuple):
    """One answer of the audit sample that an auditor has labelled."""

    id: str
    at: datetime  # of the answer, UTC
    client: str  # who sent the image, "" where unknown
    is_right: bool
    probability: float  # of the predicted digit


def answers(engine: Engine, version: str, since: datetime, until: datetime) -> Sequence[AuditedAnswer]:
    """The labelled audit sample of the version's answers from `since` up to but not including `until`, oldest answer first.

    Labels that a retraining ingested are known for longer than the prediction log keeps their answers. Of answers to the same
    image, as an uptime probe sends it, the oldest one counts.
    """
    label = IngestedLabel
    kept = select(
        label.image,
        label.prediction_id,
        label.predicted_at,
        label.client,
        label.predicted == label.label,
        label.probability,
    ).where(label.audited, label.version == version, label.predicted_at >= since, label.predicted_at < until)
    with engine.connect() as connection:
        found = {row[1]: tuple(row) for row in connection.execute(kept)}
    live = predictions.read_window(engine, since, until, version=version, labelled=True)
    for n in np.flatnonzero(live.audited):
        image, id, is_right = live.images[n].tobytes(), live.ids[n], bool(live.digits[n] == live.labels[n])
        found[id] = image, id, live.at[n], live.clients[n], is_right, float(live.probabilities[n].max())
    ordered = sorted(found.values(), key=lambda row: (row[2], row[1]), reverse=True)
    oldest = {digest(row[0]): AuditedAnswer(*row[1:]) for row in ordered}
    return sorted(oldest.values(), key=lambda answer: (answer.at, answer.id))


def last_label(engine: Engine) -> datetime | None:
    """When an auditor gave the newest label, UTC; None before the first.

    Labels are deleted with their predictions; then it is when the newest one was ingested.
    """
    logged = select(func.max(feedback.c.at)).where(feedback.c.source == AUDITOR)
    ingested = select(func.max(IngestedLabel.ingested_at)).where(IngestedLabel.source == AUDITOR)
    with engine.connect() as connection:
        return connection.scalar(logged) or connection.scalar(ingested)
