"""One alias is moved, once it is sure that the version answers and nobody was faster; what the gate said is kept beside it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Files
from conftest import Registry as Memory
from versions import VersionRegistry

from digits.storage import database, ledger
from models import evaluation_sets, model_store, promotion
from models.model_store import ModelStore, VerifiedModel


@pytest.fixture
def stand_in(registry: Memory, champion_files: Files) -> Any:
    registry.versions.update({version: dict(champion_files) for version in "123"})
    return VersionRegistry(registry)


def test_the_former_champion_is_the_previous_one_and_the_ledger_says_why(stand_in: Any, tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    promotion.promote(stand_in, stand_in.store(tmp_path), engine, "1", "the first")
    promotion.promote(stand_in, stand_in.store(tmp_path), engine, "v2", "better")
    assert stand_in.memory.aliases == {"champion": "2", "previous": "1"}
    last = ledger.entries(engine)[-1]
    assert (last.before, last.after, last.reason) == ("1", "2", "better")
    assert last.digest == model_store.digest(stand_in.memory.versions["2"]["card.json"])
    with pytest.raises(ValueError, match="v2 is the champion already"):
        promotion.promote(stand_in, stand_in.store(tmp_path), engine, "2", "again")


def test_after_the_set_champion_is_retired_nothing_is_repaired_and_a_rollback_works(
    stand_in: Any, tmp_path: Path
) -> None:
    engine, store = database.connect(f"sqlite:///{tmp_path}/digits.db"), stand_in.store(tmp_path)
    for version in "12":
        promotion.promote(stand_in, store, engine, version, "better")
    evaluation_sets.retire(engine, "champion", "sevens have a bar now")
    promotion.finish_promotion(stand_in, store, engine)
    assert [entry.action for entry in ledger.entries(engine)] == ["promotion", "promotion", "retirement"]
    assert promotion.roll_back(stand_in, store, engine, "worse") == "1"


def test_who_is_overtaken_while_a_version_is_checked_changes_nothing(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    promotion.promote(stand_in, stand_in.store(tmp_path), engine, "1", "the first")
    fetch = ModelStore.fetch_version

    def slow(store: ModelStore, version: str) -> VerifiedModel:
        stand_in.set_alias("champion", "3")
        return fetch(store, version)

    monkeypatch.setattr(ModelStore, "fetch_version", slow)
    with pytest.raises(RuntimeError, match=r"v3 became the champion meanwhile; .*promote again"):
        promotion.promote(stand_in, stand_in.store(tmp_path), engine, "2", "better")
    assert stand_in.memory.aliases == {"champion": "3"} and len(ledger.entries(engine)) == 1
