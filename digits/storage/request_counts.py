"""How many requests were answered or refused, minute by minute: the volume of traffic, also of answers that are not logged."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Engine, Integer, SmallInteger, String, cast, delete, extract, func, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from digits.storage.database import Base

MIN_KEPT = timedelta(weeks=5)  # monitoring compares a week with the four before; counts hold nothing about persons


class RequestCount(Base):
    """The requests of one worker in one minute to one route with one status."""

    __tablename__ = "request_counts"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(index=True)  # the start of the minute
    route: Mapped[str] = mapped_column(String(32))
    status: Mapped[int] = mapped_column(SmallInteger)
    requests: Mapped[int]
    images: Mapped[int]  # that were classified
    uncertain: Mapped[int]  # of these images


class Total(NamedTuple):
    """The requests of a period to one route with one status."""

    route: str
    status: int
    requests: int
    images: int
    uncertain: int


def append(engine: Engine, at: datetime, totals: Iterable[Total]) -> None:
    """Add the requests of the minute that begins at `at`."""
    rows = [{"at": at, **total._asdict()} for total in totals]
    if rows:
        with engine.begin() as connection:
            connection.execute(insert(RequestCount), rows)


def by_hour(engine: Engine, since: datetime, until: datetime) -> Sequence[tuple[int, Total]]:
    """The totals of each hour with requests, by the number of whole hours after `since`; up to but not including `until`."""
    second = cast(extract("epoch", RequestCount.at), Integer)
    # Minutes begin at whole seconds. Rounded down, a minute that began less than a second before the end would be an hour too many.
    keys = ((second - math.ceil(since.timestamp())) // 3600).label("hour"), RequestCount.route, RequestCount.status
    sums = (func.sum(column) for column in (RequestCount.requests, RequestCount.images, RequestCount.uncertain))
    query = select(*keys, *sums).where(RequestCount.at >= since, RequestCount.at < until)
    with Session(engine) as session:
        return [(row[0], Total(*row[1:])) for row in session.execute(query.group_by(*keys).order_by(*keys))]


def delete_before(engine: Engine, before: datetime) -> None:
    """Delete the counts of the minutes before a time."""
    with engine.begin() as connection:
        connection.execute(delete(RequestCount).where(RequestCount.at < before))
