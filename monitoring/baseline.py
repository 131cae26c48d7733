"""Baselines: periods of logged traffic that are normal for a version; drift alarms are about changes since then.

The ledger records them. A version without one is compared with its reference sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from digits.storage import feedback, ledger, predictions
from monitoring import drift, samples
from monitoring.samples import PredictWithRejection, Sample

SUBJECT = "baseline"  # of the ledger
MAX_IMAGES = 5_000  # of a baseline that are compared
MAX_AGE = timedelta(days=30)  # of the answers in a window or in the baseline of a promotion
ENOUGH = 300  # answers to which windows go back, and the smallest baseline of a promotion
MIN_AUDITED = 10  # audited labels that say that a version was trained or judged on this traffic


@dataclass(frozen=True)
class Baseline:
    """The traffic from `since` up to but not including `until`, of any version, UTC."""

    since: datetime
    until: datetime

    @property
    def period(self) -> str:
        return f"{self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M}"


def current(engine: Engine, version: str, at: datetime | None = None) -> Baseline | None:
    """The most recent baseline of the version, now or at a time; None where it had none."""
    for entry in reversed(ledger.entries(engine, SUBJECT)):
        if entry.evidence["version"] == version and (at is None or entry.at <= at):
            return Baseline(*(datetime.fromisoformat(entry.evidence[end]) for end in ("since", "until")))
    return None


def accept(engine: Engine, version: str, since: datetime, until: datetime, reason: str) -> Baseline:
    """Record the traffic of this period as normal for the version; raises ValueError where there is too little of it."""
    new = Baseline(since.astimezone(UTC), until)
    images = sum(predictions.counts(engine, since, until).values())
    different = len(_distinct(engine, new.since, until))
    if different < drift.MIN_COUNT:
        found = f"{images} answers to {different} different images were logged from {new.period} UTC"
        raise ValueError(f"{found}; a baseline takes at least {drift.MIN_COUNT} images, give a longer --since")
    return _record(engine, version, new, reason, {"images": images})


def at_promotion(engine: Engine, version: str, replaced: str | None) -> Baseline | None:
    """Record what is normal for a version that has just become the champion.

    The newest traffic, where audited labels of it say that the version was trained or judged on it; else the baseline of the
    version that it replaced. None where that has none: what is normal then is the reference sample.
    """
    until = datetime.now(UTC)
    since = unchanged_since(engine, until)
    audited = feedback.count_audited(engine, since, until) if since else 0
    if since and audited >= MIN_AUDITED and len(_distinct(engine, since, until)) >= drift.MIN_COUNT:
        reason = f"digits v{version} was promoted with {audited} audited labels of this traffic"
        return _record(engine, version, Baseline(since, until), reason, {"audited": audited})
    kept = current(engine, replaced) if replaced else None
    if kept is None:
        return None
    return _record(engine, version, kept, f"what was normal for digits v{replaced} is for v{version}", {})


def _record(engine: Engine, version: str, new: Baseline, reason: str, evidence: Mapping[str, Any]) -> Baseline:
    before = current(engine, version)
    times = {"since": new.since.isoformat(), "until": new.until.isoformat()}
    facts = {"version": version, **times, **evidence}
    ledger.append(engine, "baseline", before.period if before else None, new.period, reason, facts, subject=SUBJECT)
    return new


def unchanged_since(engine: Engine, until: datetime) -> datetime | None:
    """The start of the newest traffic that is all alike; None with fewer than `ENOUGH` answers in `MAX_AGE`.

    The newest answers are compared with as many before them, twice as many each time, until these differ (as windows are cut
    in ADWIN: Bifet & Gavalda, Learning from Time-Changing Data with Adaptive Windowing, SDM 2007).
    """
    count, since = ENOUGH, predictions.start_of_newest(engine, ENOUGH, until)
    if since is None or since < until - MAX_AGE:
        return None
    while True:
        count *= 2
        older = predictions.start_of_newest(engine, count, until)
        if older is None or older < until - MAX_AGE or _differ(engine, (older, since), (since, until)):
            return since
        since = older


def _differ(engine: Engine, *periods: tuple[datetime, datetime]) -> bool:
    before, now = (_distinct(engine, *period) for period in periods)
    if min(len(before), len(now)) < drift.MIN_COUNT:
        return False
    tables = drift.measure(before, now)
    limits = drift.thresholds(tables[0], len(now), tables[1], before.clients, now.clients)
    return any(column.drifted for column in drift.compare(*tables, limits))


def _distinct(engine: Engine, since: datetime, until: datetime) -> Sample:
    """The answers of a period to different images, of many a random sample."""
    return samples.distinct(samples.of_window(predictions.read_window(engine, since, until, limit=MAX_IMAGES)))[0]


def read(engine: Engine, baseline: Baseline, predict: PredictWithRejection) -> Sample | None:
    """The baseline's images, each once, with this version's answers; None where the log has too few of them left."""
    found = _distinct(engine, baseline.since, baseline.until)
    if len(found) < drift.MIN_COUNT:
        return None
    probabilities, no_digit = predict(found.images)
    return replace(found, probabilities=probabilities, no_digit=no_digit)
