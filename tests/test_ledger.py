"""The ledger keeps every change of the champion, in order, with its evidence."""

from datetime import UTC, datetime, timedelta

import pytest

from digits.storage import database, ledger


def test_entries_are_returned_in_order_with_their_evidence(database_url: str) -> None:
    engine = database.connect(database_url)
    assert ledger.entries(engine) == []
    ledger.append(engine, "promotion", None, "1", "reaches the floor", {"accuracy": 0.97})
    ledger.append(engine, "rollback", "2", "1", "worse in production", {})
    first, second = ledger.entries(database.connect(database_url))
    assert (first.action, first.before, first.after, first.evidence) == (
        "promotion",
        None,
        "1",
        {"accuracy": 0.97},
    )
    assert (second.action, second.before, second.after, second.reason) == (
        "rollback",
        "2",
        "1",
        "worse in production",
    )
    assert datetime.now(UTC) - first.at < timedelta(minutes=1)
    assert "@" in first.by


@pytest.mark.parametrize(
    ("changes", "previous"),
    [
        ([("promotion", None, "1")], None),
        ([("promotion", None, "1"), ("promotion", "1", "2")], "1"),
        ([("promotion", None, "1"), ("promotion", "1", "2"), ("rollback", "2", "1")], None),
        ([("promotion", None, "1"), ("promotion", "1", "2"), ("rollback", "2", "1"), ("promotion", "1", "3")], "1"),
        ([("promotion", None, "1"), ("promotion", "1", "2"), ("promotion", "2", "3"), ("rollback", "3", "2")], "1"),
        ([("promotion", None, "1"), ("promotion", "1", "2"), ("promotion", "2", "1")], "2"),
        ([("promotion", "4", "5")], "4"),
    ],
)
def test_rolling_back_twice_goes_back_two_champions(
    changes: list[tuple[ledger.Action, str | None, str]], previous: str | None, database_url: str
) -> None:
    engine = database.connect(database_url)
    for action, before, after in changes:
        ledger.append(engine, action, before, after, "reason", {})
    assert ledger.previous_champion(ledger.entries(engine), changes[-1][2]) == previous
    assert ledger.previous_champion(ledger.entries(engine), "99") is None


def test_a_retirement_of_the_set_champion_replaces_no_champion(database_url: str) -> None:
    engine = database.connect(database_url)
    ledger.append(engine, "promotion", None, "1", "the first", {})
    ledger.append(engine, "promotion", "1", "2", "better", {})
    ledger.append(engine, "retirement", None, None, "sevens have a bar now", {}, subject="champion")
    assert [entry.after for entry in ledger.replacements(engine)] == ["1", "2"]
    assert ledger.previous_champion(ledger.replacements(engine), "2") == "1"


def test_the_last_replacement_of_a_version_is_found_with_its_reason(database_url: str) -> None:
    engine = database.connect(database_url)
    ledger.append(engine, "promotion", None, "1", "the first", {})
    assert ledger.last_replacement(ledger.entries(engine), "1") is None
    ledger.append(engine, "promotion", "1", "2", "better", {})
    ledger.append(engine, "rollback", "2", "1", "wrong on the new forms", {})
    replacement = ledger.last_replacement(ledger.entries(engine), "2")
    assert replacement is not None and (replacement.action, replacement.after, replacement.reason) == (
        "rollback",
        "1",
        "wrong on the new forms",
    )
    assert ledger.last_replacement(ledger.entries(engine), "3") is None
