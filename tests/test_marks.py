from datetime import UTC, datetime, timedelta

from digits import database, marks


def test_a_mark_is_set_moved_and_outlives_the_process(database_url: str) -> None:
    first = datetime(2026, 1, 5, 8, tzinfo=UTC)
    engine = database.connect(database_url)
    assert marks.at(engine, "retrained") is None
    marks.put(engine, "retrained", first)
    marks.put(engine, "other", first)
    marks.put(engine, "retrained", first + timedelta(hours=1))
    engine.dispose()
    again = database.connect(database_url)
    assert marks.at(again, "retrained") == first + timedelta(hours=1)
    assert marks.at(again, "other") == first
