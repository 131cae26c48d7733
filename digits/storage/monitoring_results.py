"""The last monitoring result of each version: what the service's metrics tell of drift and accuracy."""

from datetime import datetime

from sqlalchemy import Engine, String, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base


class MonitoringResult(Base):
    """The drift of a version's newest window, and its accuracy on the newest labels of the audit sample."""

    __tablename__ = "monitoring_results"

    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime]
    drift: Mapped[str] = mapped_column(String(32))  # "drift", "no drift" or "not enough data"
    severity: Mapped[str] = mapped_column(String(16))  # "none", "slight" or "strong"
    drifted_share: Mapped[float]  # of the columns
    accuracy: Mapped[str] = mapped_column(String(32))  # "as expected", "worse" or "not enough labels"
    labels: Mapped[int]  # that the accuracy is measured on
    measured: Mapped[float | None]  # None without labels
    low: Mapped[float | None]
    high: Mapped[float | None]
    least: Mapped[float]  # the accuracy that is expected at least


def put(engine: Engine, result: MonitoringResult) -> None:
    """Store a result instead of the version's earlier one."""
    with Session(engine) as session, session.begin():
        session.merge(result)


def of_version(engine: Engine, version: str) -> MonitoringResult | None:
    """The version's last result; None before the first."""
    with Session(engine) as session:
        return session.get(MonitoringResult, version)


def last_at(engine: Engine) -> datetime | None:
    """When any version was last monitored, UTC; None before the first time."""
    with Session(engine) as session:
        return session.scalar(select(func.max(MonitoringResult.at)))
