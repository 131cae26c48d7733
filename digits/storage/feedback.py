"""Labels for learning: what feedback said is ingested in once, checked, and kept for training, for the gate, or in quarantine.

A label is worth learning from when it is right, and worth judging by when it was not chosen by who complains. So an auditor's
labels are trusted: they are neither capped nor doubted, and they displace what others said of the same image. Those of the audit
sample, drawn at random, alone judge candidates.
A complaint that contradicts a confident answer is more often a slip or a prank than a find, and waits in quarantine until an
auditor has seen it; a champion that is confidently wrong shows in the audit sample.

Taking and using are apart. `take` decides on every new label in one transaction, which notes the label as taken; what was decided
is then read as often as need be, so whatever dies in between is done again to the same end.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from digits.images import PIXELS, SIZE, Images, Split
from digits.storage import predictions as log
from digits.storage.database import UtcDateTime, metadata

Part = Literal["train", "hold-out", "quarantine", "left out"]

_AT_ONCE = 500  # rows per statement: SQLite takes 32,766 values, PostgreSQL 65,535

ingested = Table(
    "ingested_labels",
    metadata,
    Column("prediction_id", String(32), primary_key=True),
    Column("sequence", Integer, nullable=False),  # of the word of feedback that was taken; a later one is new
    Column("digest", String(32), nullable=False, index=True),  # of the image
    Column("image", LargeBinary(PIXELS), nullable=False),  # kept: the prediction log forgets
    Column("digit", SmallInteger, nullable=False),  # what feedback said
    Column("answered", SmallInteger, nullable=False),
    Column("probability", Float, nullable=False),
    Column("version", String(32), nullable=False),  # that answered
    Column("source", String(64), nullable=False),
    Column("audited", Boolean, nullable=False),
    Column("answered_at", UtcDateTime, nullable=False),
    Column("part", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("ingested_at", UtcDateTime, nullable=False),
)


class FeedbackPolicy(BaseModel):
    """Which labels are learned from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hold_out: float = Field(
        0.3, ge=0, lt=1, description="Share of the audit sample kept for the gate, by the hash of the image."
    )
    confident: float = Field(0.99, gt=0, le=1, description="Probability from which on a contradiction is doubted.")
    most_per_source: int = Field(500, ge=1, description="Labels ingested from one source at a time, audit apart.")


@dataclass(frozen=True)
class Labelled:
    """An answer with the last word that feedback had on it."""

    id: str
    digest: str  # of the image
    digit: int  # what feedback says
    answered: int
    probability: float  # of the answer
    source: str
    audited: bool  # belongs to the audit sample

    @property
    def is_trusted(self) -> bool:
        return self.source == log.AUDITOR


@dataclass(frozen=True)
class Decision:
    """Where a label goes and, if not to use, why."""

    part: Part
    reason: str = ""


def waiting(engine: Engine) -> int:
    """How many labels have come that no retraining has ingested."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(_new().subquery())) or 0


def ingest_feedback(engine: Engine, policy: FeedbackPolicy) -> Counter[Part]:
    """Decide on every new label and note it as ingested, all or none; how many went where."""
    with engine.begin() as connection:
        rows = connection.execute(_new().order_by("id")).all()
        log.stack(rows, "image", np.uint8, PIXELS)  # raises where a record holds no image
        labelled = [
            Labelled(row.id, digest(row.image), row.label, row.digit, row.probability, row.source, bool(row.audited))
            for row in rows
        ]
        columns = (ingested.c.prediction_id, ingested.c.digest, ingested.c.digit, ingested.c.source)
        in_use = connection.execute(select(*columns).where(ingested.c.part.in_(("train", "hold-out")))).all()
        again = {one.id for one in labelled}
        checked = {one.digest for one in labelled if one.is_trusted}
        displaced = {row.prediction_id for row in in_use if row.digest in checked and row.source != log.AUDITOR}
        known = {row.digest: row.digit for row in in_use if row.prediction_id not in again | displaced}
        decisions = triage(labelled, known, policy)
        now = datetime.now(UTC)
        values = [_value(row, one, decision, now) for row, one, decision in zip(rows, labelled, decisions, strict=True)]
        build = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        for start in range(0, len(values), _AT_ONCE):
            statement = build(ingested)
            changed = {name: statement.excluded[name] for name in values[0] if name != "prediction_id"}
            statement = statement.on_conflict_do_update(index_elements=["prediction_id"], set_=changed)
            connection.execute(statement, values[start : start + _AT_ONCE])
        for id in displaced - again:
            word = {"part": "left out", "reason": "an auditor has labelled the same image"}
            connection.execute(update(ingested).where(ingested.c.prediction_id == id), word)
    return Counter(decision.part for decision in decisions)


def triage(labelled: Sequence[Labelled], known: dict[str, int], policy: FeedbackPolicy) -> list[Decision]:
    """A decision for each; `known` are the labels in use by the digest of their image.

    An auditor's come first, the others in the order of their digests, so that a cap draws at random.
    """
    order = sorted(range(len(labelled)), key=lambda i: (not labelled[i].is_trusted, labelled[i].digest, labelled[i].id))
    disputed = _disputed(one for one in labelled if not one.is_trusted)
    counts: Counter[str] = Counter()
    in_use = dict(known)
    decisions = {}
    for i in order:
        one = labelled[i]
        decision = _decide(one, in_use, disputed, counts[one.source], policy)
        if decision.part in ("train", "hold-out"):
            in_use[one.digest] = one.digit
            counts[one.source] += not one.is_trusted
        decisions[i] = decision
    return [decisions[i] for i in range(len(labelled))]


def _decide(one: Labelled, in_use: dict[str, int], disputed: set[str], count: int, policy: FeedbackPolicy) -> Decision:
    if one.digest in in_use:
        if in_use[one.digest] == one.digit:
            return Decision("left out", "the same image has this label already")
        return Decision("quarantine", f"the same image is in use as a {in_use[one.digest]}")
    if not one.is_trusted:
        if one.digest in disputed:
            return Decision("quarantine", "the same image was given different labels")
        if one.digit != one.answered and one.probability >= policy.confident:
            return Decision("quarantine", f"the version was sure of a {one.answered} ({one.probability:.4f})")
        if count >= policy.most_per_source:
            return Decision("left out", f"{one.source} has brought {count} already")
    return Decision("hold-out" if one.audited and _share(one.digest) < policy.hold_out else "train")


def _disputed(labelled: Iterable[Labelled]) -> set[str]:
    """Images that were given different labels."""
    said: dict[str, int] = {}
    return {one.digest for one in labelled if said.setdefault(one.digest, one.digit) != one.digit}


def training(engine: Engine) -> Split | None:
    """Every label that was ingested for training, oldest answer first; None where there is none."""
    rows = _kept(engine, select(ingested).where(ingested.c.part == "train").order_by(ingested.c.prediction_id))
    return _split(rows)


def audited_traffic(engine: Engine, max_images: int = 2000) -> Split | None:
    """The newest labels of the audit sample, on which any two versions can be compared by replay; None where there are none.

    Complaints are about wrong answers of the champion, so any other model would look better on them. Images that one of the two
    versions trained on are left out by whoever compares.
    """
    chosen = select(ingested).where(ingested.c.part.in_(("train", "hold-out")), ingested.c.audited)
    return _split(_kept(engine, chosen.order_by(ingested.c.prediction_id.desc()).limit(max_images)))


def unlabelled_audit(engine: Engine, since: datetime) -> list[tuple[str, NDArray[np.uint8]]]:
    """Ids and images (28, 28) of the audit sample that wait for an auditor."""
    answers = log.with_labels().subquery()
    chosen = select(answers.c.id, answers.c.image).where(answers.c.audit)
    chosen = chosen.where(answers.c.at >= since, ~answers.c.audited).order_by(answers.c.id)
    rows = _kept(engine, chosen)
    return list(zip((row["id"] for row in rows), _images(rows), strict=True))


def quarantined(engine: Engine) -> list[tuple[str, NDArray[np.uint8]]]:
    """Ids and images (28, 28) of answers whose label waits in quarantine and which no auditor has seen."""
    seen = select(log.feedback.c.prediction_id).where(log.feedback.c.source == log.AUDITOR)
    there = select(log.predictions.c.id)  # of what the log has forgotten, nobody can say anything any more
    chosen = select(ingested.c.prediction_id.label("id"), ingested.c.image).where(ingested.c.part == "quarantine")
    chosen = chosen.where(ingested.c.prediction_id.not_in(seen), ingested.c.prediction_id.in_(there))
    rows = _kept(engine, chosen.order_by(ingested.c.prediction_id))
    return list(zip((row["id"] for row in rows), _images(rows), strict=True))


def digest(image: bytes) -> str:
    """A fingerprint of an image's bytes, 32 hex digits."""
    return hashlib.blake2b(image, digest_size=16).hexdigest()


def _share(digest: str) -> float:
    """A number in [0, 1) that depends on the image alone, so that the same image always lands on the same side."""
    return int(digest[:12], 16) / 2**48


def _new() -> Select[Any]:
    """Labelled answers of champions whose last word was not ingested."""
    answers = _labelled().subquery()
    joined = answers.outerjoin(ingested, answers.c.id == ingested.c.prediction_id)
    untaken = or_(ingested.c.prediction_id.is_(None), ingested.c.sequence != answers.c.sequence)
    return select(answers).select_from(joined).where(untaken)


def _labelled() -> Select[Any]:
    """Answers of champions that feedback said something of: few of many, found by their ids."""
    said = select(log.feedback.c.prediction_id)
    return log.with_labels().where(log.predictions.c.id.in_(said))


def _value(row: Any, one: Labelled, decision: Decision, now: datetime) -> dict[str, Any]:
    return {
        "prediction_id": row.id,
        "sequence": row.sequence,
        "digest": one.digest,
        "image": row.image,
        "digit": one.digit,
        "answered": one.answered,
        "probability": one.probability,
        "version": row.version,
        "source": one.source,
        "audited": one.audited,
        "answered_at": row.at,
        "part": decision.part,
        "reason": decision.reason,
        "ingested_at": now,
    }


def _kept(engine: Engine, chosen: Select[Any]) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(chosen).mappings().all()


def _split(rows: Sequence[Any]) -> Split | None:
    return Split(_images(rows), np.array([row["digit"] for row in rows], np.uint8)) if rows else None


def _images(rows: Sequence[Any]) -> Images:
    return np.frombuffer(b"".join(row["image"] for row in rows), np.uint8).reshape(-1, SIZE, SIZE)
