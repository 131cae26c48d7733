"""One alias is moved, once it is sure that the version answers and nobody was faster; what the gate said is kept beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Files
from conftest import Registry as Memory

from digits.storage import database, ledger
from models import promotion
from models.gate import UNDECIDED, GateVerdict
from models.model_store import ModelStore, VerifiedModel


@dataclass
class Registry:
    """As `models.registry` but for MLflow: aliases and tags in memory."""

    memory: Memory
    tags: dict[str, dict[str, str]] = field(default_factory=dict)

    def store(self, cache: Path) -> ModelStore:
        return ModelStore(self.memory.uri, cache)

    def set_alias(self, alias: str, version: str) -> None:
        self.memory.aliases[alias] = version

    def tag_version(self, version: str, tags: dict[str, str]) -> None:
        self.tags.setdefault(version, {}).update(tags)

    def version_tags(self, version: str) -> dict[str, str]:
        return self.tags.get(version, {})


@pytest.fixture
def stand_in(registry: Memory, champion_files: Files) -> Any:
    registry.versions.update({version: dict(champion_files) for version in "123"})
    return Registry(registry)


def test_the_former_champion_is_the_previous_one_and_the_ledger_says_why(stand_in: Any, tmp_path: Path) -> None:
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    promotion.promote(stand_in, stand_in.store(tmp_path), engine, "1", "the first")
    promotion.promote(stand_in, stand_in.store(tmp_path), engine, "v2", "better", {"gain": 0.01})
    assert stand_in.memory.aliases == {"champion": "2", "previous": "1"}
    last = ledger.entries(engine)[-1]
    assert (last.before, last.after, last.reason, last.evidence) == ("1", "2", "better", {"gain": 0.01})
    with pytest.raises(ValueError, match="v2 is the champion already"):
        promotion.promote(stand_in, stand_in.store(tmp_path), engine, "2", "again")


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


def test_an_earlier_comparison_counts_beside_the_same_champion_alone(stand_in: Any) -> None:
    evidence = {"traffic: images": 60.0}
    promotion.record_verdict(stand_in, "2", "1", GateVerdict(UNDECIDED, ["who knows"], evidence))
    assert promotion.last_evidence(stand_in, "2", "1") == evidence
    assert promotion.last_evidence(stand_in, "2", "3") == promotion.last_evidence(stand_in, "3", "1") == {}
    promotion.record_verdict(stand_in, "2", "1", GateVerdict("promote", ["better"], evidence))
    assert promotion.last_evidence(stand_in, "2", "1") == {}
