"""A retraining that an event asks for during another one, or too soon after it, ends as Skipped in Prefect; by hand it is an error."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import post

from digits.settings import Settings, load_settings
from digits.storage import cooldowns, database
from flows.retrain import retrain, retraining_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty home; nothing that is skipped needs more."""
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    return load_settings()


def newest_run(prefect: str) -> dict[str, Any]:
    wanted = {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_DESC", "limit": 1}
    (run,) = post(f"{prefect}/flow_runs/filter", json=wanted).json()
    return dict(run)


def test_an_event_during_a_retraining_is_skipped(prefect: str, settings: Settings) -> None:
    with retraining_slot():
        said = retrain(reason="drift: strokes thicker", cooldown=True)
    run = newest_run(prefect)
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Skipped")
    assert said == run["state"]["message"] and said.startswith("another retraining is running, events start the next")
    assert run["tags"] == ["drift"]


def test_an_event_within_the_cooldown_is_skipped(prefect: str, settings: Settings) -> None:
    cooldowns.put(database.connect(settings.database_url), cooldowns.RETRAINED, datetime.now(UTC))
    said = retrain(reason="labels: 300 new ones", cooldown=True)
    run = newest_run(prefect)
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Skipped")
    assert said == run["state"]["message"] and said.startswith("the last retraining ended at ")
    assert run["tags"] == ["labels"]


@pytest.mark.parametrize("reason", ["manual", "schedule"])
def test_by_hand_and_by_schedule_it_is_an_error(prefect: str, settings: Settings, reason: str) -> None:
    with retraining_slot(), pytest.raises(RuntimeError, match="another retraining is running; wait for its end, or"):
        retrain(reason=reason)
    run = newest_run(prefect)
    assert run["state_type"] == "FAILED" and "another retraining is running" in run["state"]["message"]
