"""One alias is moved, once it is sure that the version answers and nobody was faster; what the gate said is kept beside it."""

from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Barrier, Thread
from typing import Any

import hostile
import pytest
from conftest import Files
from conftest import Registry as Memory
from versions import VersionRegistry

from digits.storage import database, ledger
from models import evaluation_sets, model_store, promotion, verification
from models.model_store import ModelStore, VerifiedModel
from models.onnx_model import InvalidArtifact
from models.registry_reader import RegistryUnreachable
from services.serving_state import AliasWatcher


@pytest.fixture
def stand_in(registry: Memory, champion_files: Files) -> Any:
    registry.versions.update({version: dict(champion_files) for version in "123"})
    return VersionRegistry(registry)


def test_the_former_champion_is_the_previous_one_and_the_ledger_says_why(stand_in: Any, tmp_path: Path) -> None:
    platform = stand_in.platform(tmp_path)
    promotion.promote(platform, "1", "the first")
    promotion.promote(platform, "v2", "better")
    assert stand_in.memory.aliases == {"champion": "2", "previous": "1"}
    last = ledger.entries(platform.engine)[-1]
    assert (last.before, last.after, last.reason) == ("1", "2", "better")
    assert last.digest == model_store.digest(stand_in.memory.versions["2"]["card.json"])
    with pytest.raises(ValueError, match="v2 is the champion already"):
        promotion.promote(platform, "2", "again")


def test_after_the_set_champion_is_retired_nothing_is_repaired_and_a_rollback_works(
    stand_in: Any, tmp_path: Path
) -> None:
    platform = stand_in.platform(tmp_path)
    for version in "12":
        promotion.promote(platform, version, "better")
    evaluation_sets.retire(platform.engine, "champion", "sevens have a bar now")
    promotion.finish_promotion(platform)
    assert [entry.action for entry in ledger.entries(platform.engine)] == ["promotion", "promotion", "retirement"]
    assert promotion.roll_back(platform, "worse") == "1"


def test_who_is_overtaken_while_a_version_is_checked_changes_nothing(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = stand_in.platform(tmp_path)
    promotion.promote(platform, "1", "the first")
    fetch = ModelStore.fetch_version

    def slow(store: ModelStore, version: str) -> VerifiedModel:
        stand_in.set_alias("champion", "3")
        return fetch(store, version)

    monkeypatch.setattr(ModelStore, "fetch_version", slow)
    with pytest.raises(RuntimeError, match=r"changed from v1 to v3 meanwhile; .*promote again"):
        promotion.promote(platform, "2", "better")
    assert stand_in.memory.aliases == {"champion": "3"} and len(ledger.entries(platform.engine)) == 1


def test_of_promotions_at_once_the_last_in_the_ledger_is_the_champion(
    stand_in: Any, database_url: str, tmp_path: Path
) -> None:
    """Two processes promote fifty times each; one that is overtaken changes nothing and says so."""
    start, answers, refusals = Barrier(2), [], []
    for version in "123":
        stand_in.platform(tmp_path).models.fetch_version(version)  # copies, so that the promotions themselves meet

    def promote_often(seed: int) -> None:
        platform, random = stand_in.platform(tmp_path, database_url=database_url), Random(seed)
        start.wait()
        for _ in range(50):
            try:
                answers.append(promotion.promote(platform, random.choice("123"), f"by {seed}"))
            except (RuntimeError, ValueError) as error:
                refusals.append(str(error))
        platform.engine.dispose()

    threads = [Thread(target=promote_often, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine = database.connect(database_url)
    entries = ledger.replacements(engine)
    assert len(answers) + len(refusals) == 100
    # A version that the other process promoted a moment ago is answered with that entry.
    assert {answer.number for answer in answers} == {entry.number for entry in entries}
    assert any(" meanwhile; see `digits ledger`" in refusal for refusal in refusals)
    assert [one.after for one, _ in pairwise(entries)] == [other.before for _, other in pairwise(entries)]
    assert entries[-1].after == stand_in.memory.aliases["champion"]
    assert entries[-1].before == stand_in.memory.aliases["previous"]
    engine.dispose()


@pytest.mark.parametrize("make", [hostile.endless, hostile.huge, lambda honest: hostile.failing_from(41, honest)])
def test_a_hostile_version_is_not_promoted_and_another_one_is(
    make: Any, stand_in: Any, champion_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody has moved the alias to it."""
    monkeypatch.setattr(verification, "TIME_LIMIT_SECONDS", 5)
    platform = stand_in.platform(tmp_path)
    for version in "12":
        promotion.promote(platform, version, "better")
    stand_in.memory.versions["9"], stand_in.memory.aliases["champion"] = make(champion_files), "9"
    with pytest.raises(InvalidArtifact, match="digits v9: "):
        promotion.promote(platform, "9", "it looks good")
    promotion.promote(platform, "3", "instead of 9")
    assert [(one.before, one.after) for one in ledger.replacements(platform.engine)][-1] == ("9", "3")
    assert promotion.roll_back(platform, "worse") == "2"
    assert stand_in.memory.aliases["champion"] == "2"


def test_a_promotion_that_the_registry_did_not_take_is_finished_by_the_next_attempt_or_retraining(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = stand_in.platform(tmp_path)
    promotion.promote(platform, "1", "the first")
    for version, finish in (
        ("2", lambda: promotion.promote(platform, "2", "better")),
        ("3", lambda: promotion.finish_promotion(platform)),
    ):
        with monkeypatch.context() as patch, pytest.raises(RegistryUnreachable):
            patch.setattr(VersionRegistry, "set_alias", unreachable)
            promotion.promote(platform, version, "better")
        assert stand_in.memory.aliases["champion"] != version
        finish()
        assert stand_in.memory.aliases["champion"] == version
    assert [(one.before, one.after) for one in ledger.replacements(platform.engine)] == [
        (None, "1"),
        ("1", "2"),
        ("2", "3"),
    ]


def test_a_champion_from_before_the_ledger_had_digests_answers_with_a_warning_until_it_is_promoted_again(
    stand_in: Any, tmp_path: Path
) -> None:
    platform = stand_in.platform(tmp_path)
    for before, version in ((None, "1"), ("1", "2")):
        ledger.append(platform.engine, "promotion", before, version, "better", {})
    stand_in.memory.aliases.update(champion="2", previous="1")
    watching = AliasWatcher(
        stand_in.memory.uri, "champion", tmp_path / "champions", 1, lambda: ledger.promoted_digests(platform.engine)
    )
    assert promotion.finish_promotion(platform) is None
    watching.poll()
    assert watching.state.champion and watching.state.champion.version == "2"
    assert "`digits promote 2`" in (watching.state.warning or "")
    promotion.promote(platform, "2", "record its digest")
    watching.poll()
    assert watching.state.champion.version == "2" and watching.state.warning is None
    assert promotion.roll_back(platform, "worse") == "1"
    watching.poll()
    assert watching.state.champion.version == "1" and watching.state.warning is None


def unreachable(*_: object) -> None:
    raise RegistryUnreachable("MLflow is unreachable")


def test_an_alias_that_was_moved_by_hand_is_not_recorded_until_somebody_promotes_it(
    stand_in: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    platform = stand_in.platform(tmp_path)
    promotion.promote(platform, "1", "the first")
    stand_in.set_alias("champion", "3")
    assert promotion.finish_promotion(platform) is None
    assert "the champion is v3 in the registry, but v1 in the ledger; `digits promote 3`" in caplog.text
    assert [one.after for one in ledger.replacements(platform.engine)] == ["1"]
    promotion.promote(platform, "3", "it is meant")
    assert [(one.before, one.after) for one in ledger.replacements(platform.engine)] == [(None, "1"), ("1", "3")]
    assert promotion.roll_back(platform, "worse") == "1"


def test_an_alias_that_is_gone_is_named_in_words(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    platform = stand_in.platform(tmp_path)
    for version in "12":
        promotion.promote(platform, version, "better")
    fetch = ModelStore.fetch_version

    def remove_alias(store: ModelStore, version: str) -> VerifiedModel:
        stand_in.remove_alias("champion")
        return fetch(store, version)

    monkeypatch.setattr(ModelStore, "fetch_version", remove_alias)
    with pytest.raises(RuntimeError, match="changed from v2 to no version meanwhile"):
        promotion.promote(platform, "3", "better")
    assert promotion.finish_promotion(platform) is None
    assert "the champion is no version in the registry, but v2 in the ledger; `digits promote 2`" in caplog.text


def test_the_entry_of_a_promotion_is_returned_and_not_that_of_a_later_one(stand_in: Any, tmp_path: Path) -> None:
    platform = stand_in.platform(tmp_path)
    first, second = (promotion.promote(platform, version, "better") for version in "12")
    assert (first.number, first.before, first.after) == (1, None, "1")
    assert (second.number, second.before, second.after) == (2, "1", "2")
    with pytest.raises(ValueError, match="is the champion already"):
        promotion.promote(platform, "2", "again")
    finished = promotion.replace_champion(platform, "2", "2", promotion.Decision("again"))
    assert finished.number == 2 and len(ledger.entries(platform.engine)) == 2


def test_a_new_registry_does_not_stop_the_retraining(stand_in: Any, tmp_path: Path) -> None:
    """It counts from 1 again; what the ledger knows is gone."""
    platform = stand_in.platform(tmp_path)
    promotion.promote(platform, "1", "the first")
    stand_in.memory.aliases.clear()
    for versions in ({}, {"1": hostile.failing_from(41, stand_in.memory.versions["1"])}):
        stand_in.memory.versions = versions
        assert promotion.finish_promotion(platform) is None
    assert stand_in.memory.aliases == {}
