"""The ledger keeps every change of the champion, in order, with its evidence."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from digits import database, ledger


def test_entries_come_back_in_order_with_their_evidence(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/digits.db"
    engine = database.connect(url)
    assert ledger.entries(engine) == []
    ledger.append(engine, "promotion", None, "1", "reaches the floor", {"accuracy": 0.97})
    ledger.append(engine, "rollback", "2", "1", "worse in production", {})
    first, second = ledger.entries(database.connect(url))
    assert (first.action, first.from_version, first.to_version, first.evidence) == (
        "promotion",
        None,
        "1",
        {"accuracy": 0.97},
    )
    assert (second.action, second.from_version, second.to_version, second.why) == (
        "rollback",
        "2",
        "1",
        "worse in production",
    )
    assert datetime.now(UTC) - first.at < timedelta(minutes=1)
    assert "@" in first.by
