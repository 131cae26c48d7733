"""What monitoring reads beside the answers of a window: all audited answers of the version, its promotions, and counts of requests."""

from datetime import datetime, timedelta

from digits import intervals
from digits.intervals import Proportion
from digits.storage import audit, ledger, request_counts
from models.connections import Platform
from monitoring import traffic
from monitoring.accuracy import History
from monitoring.traffic import Traffic


def count_traffic(platform: Platform, version: str, created_at: datetime, until: datetime) -> Traffic:
    """The requests of the last day, compared with the weeks before."""
    promotions = _promotions(platform, version, created_at)
    serving_since = promotions[-1].at if promotions else created_at
    counts = request_counts.by_hour(platform.engine, until - timedelta(hours=traffic.HOURS), until)
    return traffic.assess(traffic.hours(counts), until, serving_since, audit.last_label(platform.engine))


def audited_answers(platform: Platform, version: str, created_at: datetime, until: datetime) -> History:
    """The labelled audit sample of all the version's answers, and its accuracy on the traffic that the gate judged it on."""
    answers = audit.answers(platform.engine, version, created_at, until)
    judged = (_traffic_accuracy(entry) for entry in reversed(_promotions(platform, version, created_at)))
    return History(answers, created_at, next((accuracy for accuracy in judged if accuracy), None))


def _promotions(platform: Platform, version: str, created_at: datetime) -> list[ledger.Entry]:
    """The entries that made the version the champion. A new registry counts versions from 1 again; older entries are of others."""
    entries = ledger.replacements(platform.engine)
    return [entry for entry in entries if entry.after == version and entry.at >= created_at]


def _traffic_accuracy(entry: ledger.Entry) -> Proportion | None:
    """The accuracy on the evaluation set `traffic` in the gate's evidence; None where it was not used."""
    count = int(entry.evidence.get("traffic: images", 0))
    return intervals.wilson(round(entry.evidence["traffic: accuracy"] * count), count) if count else None
