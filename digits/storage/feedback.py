"""Labels from feedback: each is ingested once and assigned to training, to the hold-out of the audit sample, or to quarantine.

Labels of auditors are trusted: they are neither capped nor doubted, and they replace the labels that others gave the same image.
Only those of the audit sample, which is drawn at random, judge candidates; the images that people complain about are a biased sample.
A label that contradicts a confident prediction is more often a mistake or a prank than an error of the model. It stays in
quarantine until an auditor has labelled the image; a confidently wrong champion shows in the audit sample.

`ingest_feedback` decides on all new labels in one transaction, and its decisions can be read any number of times, so a process
that ends between the two loses nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from sqlalchemy import (
    ColumnElement,
    Engine,
    Index,
    LargeBinary,
    Select,
    SmallInteger,
    String,
    Text,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.images import NO_DIGIT, PIXELS, SIZE, Images, Split
from digits.storage import labels, predictions
from digits.storage.database import Base
from digits.storage.labels import AUDITOR

Part = Literal["train", "hold-out", "quarantine", "left out"]
IN_USE: tuple[Part, ...] = ("train", "hold-out")


class IngestedLabel(Base):
    """The most recent label of a prediction, and the part that it is assigned to."""

    __tablename__ = "ingested_labels"
    # covers the search for labels that are new
    __table_args__ = (Index("ingested_labels_sequence", "prediction_id", "sequence"),)

    prediction_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sequence: Mapped[int]  # of the label in `feedback`; a later one is new
    digest: Mapped[str] = mapped_column(String(32), index=True)  # of the image
    image: Mapped[bytes] = mapped_column(LargeBinary(PIXELS))  # a copy: predictions are deleted after some time
    label: Mapped[int] = mapped_column(SmallInteger)  # 0 to 9, or NO_DIGIT
    predicted: Mapped[int] = mapped_column(SmallInteger)
    probability: Mapped[float]  # of the predicted digit
    version: Mapped[str] = mapped_column(String(32))  # that predicted
    source: Mapped[str] = mapped_column(String(64))
    client: Mapped[str] = mapped_column(String(64))  # who sent the image
    route: Mapped[str] = mapped_column(String(32))  # by which it came
    audited: Mapped[bool]  # belongs to the audit sample
    predicted_at: Mapped[datetime]
    part: Mapped[Part] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(Text)  # empty for a label in use
    ingested_at: Mapped[datetime]

    @property
    def is_trusted(self) -> bool:
        return self.source == AUDITOR


@dataclass(frozen=True, eq=False)
class AuditedTraffic(Split):
    """Labelled images of the audit sample, newest first."""

    clients: list[str]  # who sent each image, "" where unknown
    routes: list[str]  # by which each image came
    since: datetime  # of the oldest image, UTC


class FeedbackPolicy(BaseModel, frozen=True, extra="forbid", title="DIGITS_FEEDBACK"):
    """Which labels the training set accepts."""

    hold_out: float = Field(0.3, ge=0, lt=1, description="Share of the audit sample that is kept for the gate.")
    confident: float = Field(0.99, gt=0, le=1, description="Probability from which a contradicting label is doubted.")
    max_per_source: int = Field(500, ge=1, description="Labels accepted from one source per ingestion, except audits.")


def waiting(engine: Engine) -> int:
    """The number of labels that are not yet ingested and from which a retraining can learn, so without those of no digit."""
    new = new_labels(labels.feedback.c.label != NO_DIGIT).subquery()
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).where(new.c.label != NO_DIGIT)) or 0


def ingest_feedback(engine: Engine, policy: FeedbackPolicy) -> Counter[Part]:
    """Decide on all new labels in one transaction. Returns the number of labels per part."""
    with Session(engine) as session, session.begin():
        new = _read_new(session)
        if ids := [{"id": label.prediction_id} for label in new]:
            corrected = delete(IngestedLabel).where(IngestedLabel.prediction_id == bindparam("id"))
            session.connection().execute(corrected, ids)
        in_use = IngestedLabel.part.in_(IN_USE)
        known = session.execute(select(IngestedLabel.digest, IngestedLabel.label, IngestedLabel.source).where(in_use))
        audited = {label.digest for label in new if label.is_trusted}
        kept = {row.digest: row.label for row in known if row.source == AUDITOR or row.digest not in audited}
        triage(new, kept, policy)
        session.add_all(new)
        session.flush()
        by_auditors = IngestedLabel.digest.in_(select(IngestedLabel.digest).where(IngestedLabel.source == AUDITOR))
        replaced = update(IngestedLabel).where(in_use, IngestedLabel.source != AUDITOR, by_auditors)
        session.execute(replaced.values(part="left out", reason="an auditor has labelled the same image"))
        parts = Counter(label.part for label in new)
    return parts


def triage(new: Sequence[IngestedLabel], known: dict[str, int], policy: FeedbackPolicy) -> None:
    """Assign each new label to a part; `known` are the labels in use by the digest of their image.

    Auditors' labels come first, the others in the order of their digests, so that the cap selects at random.
    """
    disputed = _disputed(label for label in new if not label.is_trusted)
    counts: Counter[str] = Counter()
    in_use = dict(known)
    for new_label in sorted(new, key=lambda label: (not label.is_trusted, label.digest, label.prediction_id)):
        new_label.part, new_label.reason = _decide(new_label, in_use, disputed, counts[new_label.source], policy)
        if new_label.part in IN_USE:
            in_use[new_label.digest] = new_label.label
            counts[new_label.source] += not new_label.is_trusted


def _decide(
    new_label: IngestedLabel, in_use: dict[str, int], disputed: set[str], count: int, policy: FeedbackPolicy
) -> tuple[Part, str]:
    """The part of a label and, if it is not in use, the reason."""
    if new_label.digest in in_use:
        if in_use[new_label.digest] == new_label.label:
            return "left out", "the same image has this label already"
        return "quarantine", f"the same image is in use as a {in_use[new_label.digest]}"
    if not new_label.is_trusted:
        if new_label.digest in disputed:
            return "quarantine", "the same image has different labels"
        # "No digit" teaches nothing, so nothing is gained by doubting it.
        contradicts = new_label.label not in (new_label.predicted, NO_DIGIT)
        if contradicts and new_label.probability >= policy.confident:
            return "quarantine", f"the version predicted {new_label.predicted} with {new_label.probability:.4f}"
        if count >= policy.max_per_source:
            return "left out", f"{new_label.source} exceeds {policy.max_per_source} labels per ingestion"
    if new_label.label == NO_DIGIT:
        return "left out", "the image shows no digit, and candidates are trained and judged on digits"
    # By a number in [0, 1) that depends on the image alone: an image that comes again is in the same part.
    return "hold-out" if new_label.audited and int(new_label.digest[:12], 16) / 2**48 < policy.hold_out else "train", ""


def _disputed(new: Iterable[IngestedLabel]) -> set[str]:
    """Digests of images with different labels."""
    labels: dict[str, int] = {}
    return {label.digest for label in new if labels.setdefault(label.digest, label.label) != label.label}


def training(engine: Engine) -> Split | None:
    """All labels assigned to training, oldest prediction first; None if there are none."""
    return _split(engine, select(IngestedLabel).where(IngestedLabel.part == "train").order_by("prediction_id"))


def audited_traffic(engine: Engine, max_images: int = 2000) -> AuditedTraffic | None:
    """The newest labels of the audit sample, on which two versions can be compared by replay; None if there are none.

    Complaints are about errors of the champion, so any other model would look better on them. The caller leaves out the images
    that one of the two versions was trained on.
    """
    query = select(IngestedLabel).where(IngestedLabel.part.in_(IN_USE), IngestedLabel.audited)
    rows, images = _rows(engine, query.order_by(IngestedLabel.prediction_id.desc()).limit(max_images))
    if not rows:
        return None
    labels = np.array([row.label for row in rows], np.uint8)
    clients, routes = [row.client for row in rows], [row.route for row in rows]
    return AuditedTraffic(images, labels, clients, routes, min(row.predicted_at for row in rows))


def count_audited(engine: Engine, since: datetime, until: datetime) -> int:
    """The number of labels in use of the audit sample, of predictions from `since` up to but not including `until`."""
    query = select(func.count()).where(IngestedLabel.part.in_(IN_USE), IngestedLabel.audited)
    with engine.connect() as connection:
        times = IngestedLabel.predicted_at >= since, IngestedLabel.predicted_at < until
        return connection.scalar(query.where(*times)) or 0


def unlabelled_audit(engine: Engine, since: datetime) -> list[tuple[str, NDArray[np.uint8]]]:
    """Ids and images (28, 28) of the audit sample that no auditor has labelled."""
    drawn = predictions.read_audit_sample(engine, since)
    return [(id, image) for id, image, done in zip(drawn.ids, drawn.images, drawn.audited, strict=True) if not done]


def quarantined(engine: Engine) -> list[tuple[str, NDArray[np.uint8]]]:
    """The ids of `quarantined_ids` and their images (28, 28), oldest first."""
    window = predictions.read(engine, quarantined_ids(engine))
    return list(zip(window.ids, window.images, strict=True))


def quarantined_ids(engine: Engine, limit: int | None = None) -> list[str]:
    """Ids of logged predictions whose label is in quarantine and which no auditor has labelled, newest first, of the newest `limit`.

    Those that were drawn for the audit sample are left out. They wait there, in random order: accuracy would look worse if the
    answers that people contradict were labelled before the others.
    """
    current = labels.current().subquery()
    query = select(IngestedLabel.prediction_id).join(current, current.c.prediction_id == IngestedLabel.prediction_id)
    query = query.where(IngestedLabel.part == "quarantine", current.c.source != AUDITOR)
    known = predictions.known(engine, query.order_by(IngestedLabel.prediction_id.desc()).limit(limit))
    return sorted((id for id, one in known.items() if not one.is_drawn), reverse=True)


def withdraw(engine: Engine, id: str, source: str, sequence: int | None = None) -> bool:
    """Delete this source's label with this number, or its most recent one, as if it had not been given.

    False where a retraining has ingested it; True also where there is no such label. An ingestion at the same time sees the label
    either before or after, so the check and the deletion are one statement.
    """
    given, newest = labels.feedback.c, labels.feedback.alias().c
    by_source = newest.prediction_id == id, newest.source == source
    which = select(func.max(newest.sequence)).where(*by_source).scalar_subquery() if sequence is None else sequence
    chosen = given.prediction_id == id, given.source == source, given.sequence == which
    same = IngestedLabel.prediction_id == given.prediction_id, IngestedLabel.sequence == given.sequence
    ingested = select(IngestedLabel.sequence).where(*same).exists()
    with engine.begin() as connection:
        deleted = connection.execute(delete(labels.feedback).where(*chosen, ~ingested)).rowcount
        return deleted > 0 or not connection.execute(select(given.sequence).where(*chosen)).first()


def digest(image: bytes) -> str:
    """A hash of an image's bytes, 32 hex digits."""
    return hashlib.blake2b(image, digest_size=16).hexdigest()


def new_labels(*which: ColumnElement[bool]) -> Select[Any]:
    """The labels that count and are not ingested; `which` selects labels in the table `feedback`."""
    given, ingested = labels.feedback.c, IngestedLabel
    same = ingested.prediction_id == given.prediction_id, ingested.sequence == given.sequence
    # Most are ingested, and those are found in two indexes; only what remains is ranked.
    remaining = select(given.prediction_id).where(~select(ingested.sequence).where(*same).exists(), *which)
    current = labels.current(given.prediction_id.in_(remaining)).subquery()
    new = select(current).outerjoin(ingested, current.c.prediction_id == ingested.prediction_id)
    return new.where(ingested.sequence.is_distinct_from(current.c.sequence))


def _read_new(session: Session) -> list[IngestedLabel]:
    """The new labels with their predictions, not yet assigned to a part; raises ValueError where a record lacks an image."""
    now, given = datetime.now(UTC), {row.prediction_id: row for row in session.execute(new_labels())}
    window = predictions.read_labelled(session.connection(), new_labels())
    return [
        IngestedLabel(
            prediction_id=id,
            sequence=given[id].sequence,
            digest=digest(window.images[n].tobytes()),
            image=window.images[n].tobytes(),
            label=given[id].label,
            predicted=int(window.digits[n]),
            probability=float(window.probabilities[n].max()),
            version=window.versions[n],
            source=given[id].source,
            client=window.clients[n],
            route=window.routes[n],
            audited=bool(window.audited[n]) and given[id].source == AUDITOR,
            predicted_at=window.at[n],
            ingested_at=now,
        )
        for n, id in enumerate(window.ids)
        # A label that came meanwhile is ingested the next time.
        if id in given
    ]


def _rows(engine: Engine, query: Select[Any]) -> tuple[Sequence[Any], Images]:
    """Ingested labels and their images (n, 28, 28)."""
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return rows, np.frombuffer(b"".join(row.image for row in rows), np.uint8).reshape(len(rows), SIZE, SIZE)


def _split(engine: Engine, query: Select[Any]) -> Split | None:
    rows, images = _rows(engine, query)
    return Split(images, np.array([row.label for row in rows], np.uint8)) if rows else None
