"""Labels of training images that are probably wrong, and what auditors decided about them.

A decision belongs to the image: the data sets that are assembled later have it, and the stored ones stay what they were.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Engine, LargeBinary, SmallInteger, String, delete, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from digits.images import PIXELS
from digits.storage import cooldowns
from digits.storage.database import Base
from digits.storage.feedback import digest


class SuspectedLabel(Base):
    """A training image whose label out-of-sample probabilities contradict."""

    __tablename__ = "suspected_labels"

    digest: Mapped[str] = mapped_column(String(32), primary_key=True)  # of the image
    image: Mapped[bytes] = mapped_column(LargeBinary(PIXELS))
    label: Mapped[int] = mapped_column(SmallInteger)  # in the data set
    predicted: Mapped[int] = mapped_column(SmallInteger)
    probability: Mapped[float]  # of the label
    dataset: Mapped[str] = mapped_column(String(16))  # fingerprint of the data set in which it was found last
    found_at: Mapped[datetime]
    decision: Mapped[int | None] = mapped_column(SmallInteger)  # 0 to 9, NO_DIGIT, or None while nobody has decided
    source: Mapped[str | None] = mapped_column(String(64))  # who decided
    decided_at: Mapped[datetime | None]


class Suspect(NamedTuple):
    """A label that is probably wrong, without a decision yet."""

    image: bytes
    label: int
    predicted: int
    probability: float  # of the label


def replace(engine: Engine, dataset: str, suspects: Sequence[Suspect], since: datetime | None = None) -> int | None:
    """Replace the suspected labels by those of the data set to train on since this time, by default now; what was decided stays.

    Returns the number without a decision; None, with nothing changed, where those of a later data set are there.
    """
    now, table = datetime.now(UTC), SuspectedLabel
    with engine.begin() as connection:
        if not cooldowns.advance(connection, cooldowns.LABELS_CHECKED, since or now):
            return None
        connection.execute(delete(table).where(table.decision.is_(None)))
        decided = set(connection.scalars(select(table.digest)))
        found = {digest(one.image): one for one in suspects}
        new = [
            {"digest": key, "dataset": dataset, "found_at": now, **one._asdict()}
            for key, one in found.items()
            if key not in decided
        ]
        if new:
            connection.execute(insert(table), new)
    return len(new)


def waiting(engine: Engine, limit: int) -> list[str]:
    """The digests of images without a decision, the least probable labels first."""
    query = select(SuspectedLabel.digest).where(SuspectedLabel.decision.is_(None))
    with engine.connect() as connection:
        return list(connection.scalars(query.order_by(SuspectedLabel.probability, SuspectedLabel.digest).limit(limit)))


def images(engine: Engine, digests: Sequence[str]) -> dict[str, bytes]:
    """The images of these digests."""
    query = select(SuspectedLabel.digest, SuspectedLabel.image).where(SuspectedLabel.digest.in_(digests))
    with engine.connect() as connection:
        return {row.digest: row.image for row in connection.execute(query)}


def decide(engine: Engine, digest: str, decision: int | None, source: str) -> bool:
    """Record the true label of a training image, or with None that it is open again; False where it is not suspected."""
    values = {"decision": decision, "source": source, "decided_at": datetime.now(UTC)}
    if decision is None:
        values = dict.fromkeys(values)
    with engine.begin() as connection:
        changed = connection.execute(update(SuspectedLabel).where(SuspectedLabel.digest == digest).values(values))
        return changed.rowcount > 0


def corrections(engine: Engine) -> dict[bytes, int]:
    """The labels that auditors gave instead of those in the data set, NO_DIGIT for images to leave out, by image."""
    query = select(SuspectedLabel.image, SuspectedLabel.decision).where(SuspectedLabel.decision != SuspectedLabel.label)
    with engine.connect() as connection:
        return {row.image: row.decision for row in connection.execute(query)}
