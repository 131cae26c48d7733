"""The times of named events are stored in the database."""

from datetime import UTC, datetime, timedelta

from digits.storage import cooldowns, database


def test_a_time_is_recorded_replaced_and_outlives_the_process(database_url: str) -> None:
    first = datetime(2026, 1, 5, 8, tzinfo=UTC)
    engine = database.connect(database_url)
    assert cooldowns.at(engine, "retrained") is None
    cooldowns.put(engine, "retrained", first)
    cooldowns.put(engine, "other", first)
    cooldowns.put(engine, "retrained", first + timedelta(hours=1))
    engine.dispose()
    again = database.connect(database_url)
    assert cooldowns.at(again, "retrained") == first + timedelta(hours=1)
    assert cooldowns.at(again, "other") == first
