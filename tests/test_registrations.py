"""What this platform trained is recorded, once or again, and nothing else is found."""

import pytest
from sqlalchemy import Engine, text

from digits.storage import registrations
from digits.storage.database import DatabaseUnavailable


def test_a_digest_is_recorded_once_or_again(engine: Engine) -> None:
    for _ in range(2):
        registrations.put(engine, "a" * 64)
    assert registrations.contains(engine, "a" * 64) and not registrations.contains(engine, "b" * 64)


def test_a_database_that_refuses_is_said_so_that_the_step_is_tried_again(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE registrations"))
    with pytest.raises(DatabaseUnavailable, match="cannot be recorded before it is registered"):
        registrations.put(engine, "a" * 64)
