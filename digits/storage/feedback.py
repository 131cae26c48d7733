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
import sqlalchemy as sa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine, Select, func, or_, select, update

from digits.images import PIXELS, SIZE, Images, Split
from digits.storage import predictions as log
from digits.storage.database import UtcDateTime, metadata, upsert

Part = Literal["train", "hold-out", "quarantine", "left out"]
IN_USE: tuple[Part, ...] = ("train", "hold-out")

ingested = sa.Table(
    "ingested_labels",
    metadata,
    sa.Column("prediction_id", sa.String(32), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False),  # of the label in `feedback`; a later one is new
    sa.Column("digest", sa.String(32), nullable=False, index=True),  # of the image
    sa.Column("image", sa.LargeBinary(PIXELS), nullable=False),  # a copy: predictions are deleted after some time
    sa.Column("label", sa.SmallInteger, nullable=False),
    sa.Column("predicted", sa.SmallInteger, nullable=False),
    sa.Column("probability", sa.Float, nullable=False),
    sa.Column("version", sa.String(32), nullable=False),  # that predicted
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("audited", sa.Boolean, nullable=False),
    sa.Column("predicted_at", UtcDateTime, nullable=False),
    sa.Column("part", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("ingested_at", UtcDateTime, nullable=False),
)


class FeedbackPolicy(BaseModel):
    """Which labels the training set accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="DIGITS_FEEDBACK")

    hold_out: float = Field(0.3, ge=0, lt=1, description="Share of the audit sample that is kept for the gate.")
    confident: float = Field(0.99, gt=0, le=1, description="Probability from which a contradicting label is doubted.")
    max_per_source: int = Field(500, ge=1, description="Labels accepted from one source per ingestion, except audits.")


@dataclass(frozen=True)
class Labelled:
    """A prediction with its most recent label."""

    id: str
    digest: str  # of the image
    label: int
    predicted: int
    probability: float  # of the predicted digit
    source: str
    audited: bool  # belongs to the audit sample

    @property
    def is_trusted(self) -> bool:
        return self.source == log.AUDITOR


@dataclass(frozen=True)
class Decision:
    """The part that a label is assigned to and, if it is not in use, the reason."""

    part: Part
    reason: str = ""


def waiting(engine: Engine) -> int:
    """The number of labels that are not yet ingested."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(_new().subquery())) or 0


def ingest_feedback(engine: Engine, policy: FeedbackPolicy) -> Counter[Part]:
    """Decide on all new labels in one transaction; the number of labels per part."""
    with engine.begin() as connection:
        rows = connection.execute(_new().order_by("id")).all()
        log.stack(rows, "image", np.uint8, PIXELS)  # raises where a record holds no image
        labelled = [
            Labelled(row.id, digest(row.image), row.label, row.digit, row.probability, row.source, bool(row.audited))
            for row in rows
        ]
        columns = (ingested.c.prediction_id, ingested.c.digest, ingested.c.label, ingested.c.source)
        in_use = connection.execute(select(*columns).where(ingested.c.part.in_(IN_USE))).all()
        updated = {one.id for one in labelled}
        audited = {one.digest for one in labelled if one.is_trusted}
        replaced = {row.prediction_id for row in in_use if row.digest in audited and row.source != log.AUDITOR}
        known = {row.digest: row.label for row in in_use if row.prediction_id not in updated | replaced}
        decisions = triage(labelled, known, policy)
        upsert(connection, ingested, list(map(_record, rows, labelled, decisions)))
        reason = {"part": "left out", "reason": "an auditor has labelled the same image"}
        for id in replaced - updated:
            connection.execute(update(ingested).where(ingested.c.prediction_id == id), reason)
    return Counter(decision.part for decision in decisions)


def triage(labelled: Sequence[Labelled], known: dict[str, int], policy: FeedbackPolicy) -> list[Decision]:
    """A decision for each; `known` are the labels in use by the digest of their image.

    Auditors' labels come first, the others in the order of their digests, so that the cap selects at random.
    """
    order = sorted(range(len(labelled)), key=lambda i: (not labelled[i].is_trusted, labelled[i].digest, labelled[i].id))
    disputed = _disputed(one for one in labelled if not one.is_trusted)
    counts: Counter[str] = Counter()
    in_use = dict(known)
    decisions = {}
    for i in order:
        one = labelled[i]
        decisions[i] = _decide(one, in_use, disputed, counts[one.source], policy)
        if decisions[i].part in IN_USE:
            in_use[one.digest] = one.label
            counts[one.source] += not one.is_trusted
    return [decisions[i] for i in range(len(labelled))]


def _decide(one: Labelled, in_use: dict[str, int], disputed: set[str], count: int, policy: FeedbackPolicy) -> Decision:
    if one.digest in in_use:
        if in_use[one.digest] == one.label:
            return Decision("left out", "the same image has this label already")
        return Decision("quarantine", f"the same image is in use as a {in_use[one.digest]}")
    if not one.is_trusted:
        if one.digest in disputed:
            return Decision("quarantine", "the same image has different labels")
        if one.label != one.predicted and one.probability >= policy.confident:
            return Decision("quarantine", f"the version predicted {one.predicted} with {one.probability:.4f}")
        if count >= policy.max_per_source:
            return Decision("left out", f"{one.source} exceeds {policy.max_per_source} labels per ingestion")
    # By a number in [0, 1) that depends on the image alone: an image that comes again is in the same part.
    return Decision("hold-out" if one.audited and int(one.digest[:12], 16) / 2**48 < policy.hold_out else "train")


def _disputed(labelled: Iterable[Labelled]) -> set[str]:
    """Digests of images with different labels."""
    labels: dict[str, int] = {}
    return {one.digest for one in labelled if labels.setdefault(one.digest, one.label) != one.label}


def training(engine: Engine) -> Split | None:
    """All labels assigned to training, oldest prediction first; None if there are none."""
    return _split(engine, select(ingested).where(ingested.c.part == "train").order_by(ingested.c.prediction_id))


def audited_traffic(engine: Engine, max_images: int = 2000) -> Split | None:
    """The newest labels of the audit sample, on which two versions can be compared by replay; None if there are none.

    Complaints are about errors of the champion, so any other model would look better on them. The caller leaves out the images
    that one of the two versions was trained on.
    """
    chosen = select(ingested).where(ingested.c.part.in_(IN_USE), ingested.c.audited)
    return _split(engine, chosen.order_by(ingested.c.prediction_id.desc()).limit(max_images))


def unlabelled_audit(engine: Engine, since: datetime) -> list[tuple[str, NDArray[np.uint8]]]:
    """Ids and images (28, 28) of the audit sample that no auditor has labelled."""
    found = log.with_labels().subquery()
    chosen = select(found.c.id, found.c.image).where(found.c.audit, found.c.at >= since, ~found.c.audited)
    return _ids_and_images(engine, chosen.order_by(found.c.id))


def quarantined(engine: Engine) -> list[tuple[str, NDArray[np.uint8]]]:
    """Ids and images (28, 28) of predictions whose label is in quarantine and which no auditor has labelled."""
    id = ingested.c.prediction_id
    labelled = select(log.feedback.c.prediction_id).where(log.feedback.c.source == log.AUDITOR)
    # Deleted predictions cannot be labelled any more.
    chosen = select(id.label("id"), ingested.c.image).where(
        ingested.c.part == "quarantine", id.not_in(labelled), id.in_(select(log.predictions.c.id))
    )
    return _ids_and_images(engine, chosen.order_by(id))


def digest(image: bytes) -> str:
    """A hash of an image's bytes, 32 hex digits."""
    return hashlib.blake2b(image, digest_size=16).hexdigest()


def _new() -> Select[Any]:
    """Predictions whose most recent label is not ingested."""
    labelled = select(log.feedback.c.prediction_id)
    found = log.with_labels().where(log.predictions.c.id.in_(labelled)).subquery()
    joined = found.outerjoin(ingested, found.c.id == ingested.c.prediction_id)
    is_new = or_(ingested.c.prediction_id.is_(None), ingested.c.sequence != found.c.sequence)
    return select(found).select_from(joined).where(is_new)


def _record(row: Any, one: Labelled, decision: Decision) -> dict[str, Any]:
    copied = {"prediction_id": row.id, "predicted_at": row.at, "ingested_at": datetime.now(UTC)}
    copied |= {name: getattr(row, name) for name in ("sequence", "image", "version")}
    names = ("digest", "label", "predicted", "probability", "source", "audited")
    return copied | {name: getattr(one, name) for name in names} | vars(decision)


def _rows(engine: Engine, chosen: Select[Any]) -> tuple[Sequence[Any], Images]:
    with engine.connect() as connection:
        rows = connection.execute(chosen).all()
    return rows, log.stack(rows, "image", np.uint8, PIXELS).reshape(-1, SIZE, SIZE)


def _split(engine: Engine, chosen: Select[Any]) -> Split | None:
    rows, images = _rows(engine, chosen)
    return Split(images, np.array([row.label for row in rows], np.uint8)) if rows else None


def _ids_and_images(engine: Engine, chosen: Select[Any]) -> list[tuple[str, NDArray[np.uint8]]]:
    rows, images = _rows(engine, chosen)
    return list(zip((row.id for row in rows), images, strict=True))
