"""An undecided candidate waits for its turn, for its days, and for labels; the same question is never asked twice."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Registry
from sqlalchemy import Engine
from versions import VersionRegistry

from digits.storage import judgements
from models import challengers
from models.challengers import Question
from models.gate import UNDECIDED, GatePolicy, GateVerdict
from models.model_store import ModelStore

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def versions(registry: Registry) -> VersionRegistry:
    registry.versions["1"] = {}
    return VersionRegistry(registry)


@pytest.fixture
def store(versions: VersionRegistry, tmp_path: Path) -> ModelStore:
    return versions.store(tmp_path)


def waiting(versions: VersionRegistry) -> list[str]:
    return [one.version for one in challengers.queue(versions)]


def test_who_waits_longest_is_the_challenger_and_stays_it(versions: VersionRegistry, store: ModelStore) -> None:
    assert challengers.appoint(versions, store, NOON) is None
    for day, version in enumerate(("2", "10", "9")):
        challengers.enqueue(versions, version, NOON + day * DAY)
        assert challengers.appoint(versions, store, NOON + day * DAY) == "2"
    challengers.enqueue(versions, "9", NOON + 5 * DAY)  # which waits already
    assert sorted(waiting(versions), key=int) == ["2", "9", "10"]
    challengers.close(versions, "2", "held")
    assert challengers.appoint(versions, store, NOON + 6 * DAY) == "10"
    # Its days begin anew, and it remains the challenger although the other one waits longer now.
    assert waiting(versions) == ["9", "10"]
    assert challengers.appoint(versions, store, NOON + 7 * DAY) == "10"


def test_the_alias_goes_with_the_last_one(versions: VersionRegistry, store: ModelStore) -> None:
    challengers.enqueue(versions, "2", NOON)
    challengers.appoint(versions, store, NOON)
    assert versions.memory.aliases == {"challenger": "2"}
    challengers.close(versions, "2", "promoted")
    assert challengers.appoint(versions, store, NOON) is None
    assert versions.memory.aliases == {}


def test_who_has_waited_for_its_days_is_given_up_for_good(versions: VersionRegistry) -> None:
    challengers.enqueue(versions, "2", NOON)
    challengers.enqueue(versions, "3", NOON + 10 * DAY)
    challengers.expire(versions, NOON + 14 * DAY, days=14)
    assert waiting(versions) == ["2", "3"]
    challengers.expire(versions, NOON + 14 * DAY + timedelta(seconds=1), days=14)
    assert waiting(versions) == ["3"]
    assert challengers.given_up(versions, "2") == "expired" and challengers.given_up(versions, "3") is None


def test_who_is_beaten_leaves_its_place_to_the_better_one(versions: VersionRegistry, store: ModelStore) -> None:
    for version in "234":
        challengers.enqueue(versions, version, NOON)
    assert challengers.appoint(versions, store, NOON) == "2"
    challengers.replace(versions, "2", "4", NOON + DAY)
    assert challengers.appoint(versions, store, NOON + DAY) == "4"
    assert sorted(waiting(versions)) == ["3", "4"]


def test_only_what_waits_is_closed(versions: VersionRegistry) -> None:
    challengers.close(versions, "5", "held")
    challengers.enqueue(versions, "2", NOON)
    challengers.close(versions, "2", "held")
    challengers.close(versions, "2", "promoted")
    assert versions.tags["2"]["challenger"] == "held" and "5" not in versions.tags


def answers(decision: judgements.Decision) -> tuple[Callable[[float], GateVerdict], list[float]]:
    """A comparison with that result, and the levels that it is called with."""
    levels: list[float] = []

    def compare(level: float) -> GateVerdict:
        levels.append(level)
        return GateVerdict(decision, ["because"], {"traffic: p-value": 0.02, "test images: p-value": 0.5})

    return compare, levels


def test_a_question_is_asked_again_on_twice_as_much_traffic_or_under_other_conditions(engine: Engine) -> None:
    compare, levels = answers(UNDECIDED)
    asked = []
    for conditions, images in [("a", 0), ("a", 0), ("a", 60), ("a", 119), ("a", 120), ("b", 120), ("b", 130)]:
        verdict = challengers.judge(engine, Question("2", "1", conditions, images), 0.05, compare)
        assert (verdict.decision, verdict.reasons) == (UNDECIDED, ["because"])
        asked.append(len(levels))
    assert asked == [1, 1, 2, 2, 3, 4, 4]
    assert levels == sorted(levels, reverse=True) and levels[0] == pytest.approx(0.011, abs=0.0005)
    last = judgements.last(engine, "2", "1")
    assert last and (last.traffic_images, last.p_value, last.significance) == (120, 0.04, levels[-1])


def test_the_stream_goes_on_over_candidates_and_champions(engine: Engine) -> None:
    compare, levels = answers("hold")
    for candidate in range(2, 12):
        challengers.judge(engine, Question(str(candidate), "1", "", 0), 0.05, compare)
    promoting, promoted = answers("promote")
    challengers.judge(engine, Question("12", "1", "", 0), 0.05, promoting)
    challengers.judge(engine, Question("2", "12", "", 0), 0.05, compare)  # of the old champion, beside the new one
    assert levels[:10] == sorted(levels[:10], reverse=True) and promoted[0] < levels[9]
    assert levels[10] > levels[0]


def test_another_policy_is_another_condition() -> None:
    usual = challengers.conditions(GatePolicy(), "inputs")
    assert usual == challengers.conditions(GatePolicy(), "inputs")
    assert usual not in (
        challengers.conditions(GatePolicy(), "others"),
        challengers.conditions(GatePolicy(min_sample=9), "inputs"),
    )
