"""Candidates are judged on named sets: the anchor is pinned, nothing is judged on what is retired, and the ledger knows both."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, Registry
from sqlalchemy import Engine
from typer.testing import CliRunner

from digits.data import datasets, sources
from digits.data.datasets import BadData, Dataset
from digits.data.perturbations import quarter_turn
from digits.images import Split
from digits.settings import load_settings
from digits.storage import ledger
from models import evaluation_sets, recipes, registry_reader
from models import registry as registries
from models.evaluation_sets import EvaluationSet
from models.model_store import ModelStore
from ops.cli import app


@pytest.fixture
def store(registry: Registry, champion_files: Files, tmp_path: Path) -> ModelStore:
    """A registry with versions 1 and 2, both trained on a data set of their own, of which 1 is the champion."""
    for version in "12":
        card = {**json.loads(champion_files["card.json"]), "dataset": version * 16}
        registry.versions[version] = {**champion_files, "card.json": json.dumps(card).encode()}
    registry.aliases["champion"] = "1"
    return ModelStore(registry.uri, tmp_path / "champions")


def promoted(engine: Engine, before: str | None, after: str, **evidence: float) -> None:
    measured = {name.replace("_", ": ", 1).replace("_", " "): value for name, value in evidence.items()}
    ledger.append(engine, "promotion", before, after, "better", measured)


def test_the_first_champions_test_part_becomes_the_anchor_once(
    store: ModelStore, registry: Registry, engine: Engine
) -> None:
    registry.aliases.clear()
    evaluation_sets.pin_first_anchor(store, engine)
    assert not ledger.entries(engine)
    registry.aliases["champion"] = "2"
    promoted(engine, None, "1")
    promoted(engine, "1", "2")
    for _ in range(2):
        evaluation_sets.pin_first_anchor(store, engine)
    (pin,) = ledger.entries(engine, "anchor")
    assert (pin.action, pin.before, pin.after) == ("pin", None, "1" * 16)
    found = evaluation_sets.stored_sets(store, engine, "2")
    assert {name: fingerprint for name, (fingerprint, _) in found.items()} == {"anchor": "1" * 16, "champion": "2" * 16}
    evaluation_sets.pin(engine, "3" * 16, "a new scanner")
    assert evaluation_sets.stored_sets(store, engine, "2")["anchor"][0] == "3" * 16
    assert ledger.entries(engine, "anchor")[-1].before == "1" * 16
    with pytest.raises(ValueError, match=r"the anchor is the test part of 3{16} already"):
        evaluation_sets.pin(engine, "3" * 16, "once more")


def test_a_deleted_first_champion_leaves_the_present_one(store: ModelStore, registry: Registry, engine: Engine) -> None:
    promoted(engine, None, "7")
    evaluation_sets.pin_first_anchor(store, engine)
    assert ledger.entries(engine, "anchor")[0].after == "1" * 16


def test_the_best_of_all_champions_is_remembered_until_the_anchor_changes(engine: Engine) -> None:
    assert evaluation_sets.best_accuracy(engine) is None
    promoted(engine, "1", "2", anchor_accuracy=0.99, anchor_champion_accuracy=0.98)
    promoted(engine, "2", "3", anchor_accuracy=0.985, anchor_champion_accuracy=0.99)
    promoted(engine, "3", "4")
    assert evaluation_sets.best_accuracy(engine) == 0.99
    evaluation_sets.retire(engine, "anchor digit 7", "written with a bar")
    assert evaluation_sets.best_accuracy(engine) is None
    promoted(engine, "4", "5", anchor_accuracy=0.97)
    assert evaluation_sets.best_accuracy(engine) == 0.97


def test_what_is_retired_is_reinstated_by_name_or_for_the_anchor_by_a_new_one(engine: Engine) -> None:
    for name in ("anchor digit 7", "corruption inverted", "champion"):
        evaluation_sets.retire(engine, name, "no longer true")
    assert set(evaluation_sets.retired(engine)) == {"anchor digit 7", "corruption inverted", "champion"}
    evaluation_sets.reinstate(engine, "champion", "true again")
    evaluation_sets.pin(engine, "3" * 16, "sevens with a bar")
    assert set(evaluation_sets.retired(engine)) == {"corruption inverted"}
    with pytest.raises(ValueError, match="corruption inverted is retired already"):
        evaluation_sets.retire(engine, "corruption inverted", "again")
    with pytest.raises(ValueError, match="champion is not retired"):
        evaluation_sets.reinstate(engine, "champion", "again")
    with pytest.raises(ValueError, match='there is no evaluation set "anker"'):
        evaluation_sets.retire(engine, "anker", "a typing error")


def test_what_is_retired_of_the_champions_set_ends_with_the_next_champion(engine: Engine) -> None:
    """Its images are others then: in the new convention, sevens have to be read."""
    promoted(engine, None, "1")
    for name in ("champion digit 7", "candidate", "champion"):
        evaluation_sets.retire(engine, name, "sevens have a bar now")
    promoted(engine, "1", "2")
    assert set(evaluation_sets.retired(engine)) == {"candidate"}
    evaluation_sets.retire(engine, "champion digit 7", "and are written sideways")
    ledger.append(engine, "rollback", "2", "1", "worse", {})
    assert set(evaluation_sets.retired(engine)) == {"candidate"}


def test_sets_of_the_same_images_are_one(few: Split) -> None:
    other = Split(few.images, few.labels[::-1].copy())
    sets = [EvaluationSet(name, few, "a test") for name in ("anchor", "champion")] + [
        EvaluationSet("x", other, "a test")
    ]
    assert [one.name for one in evaluation_sets.distinct(sets)] == ["anchor", "x"]
    assert [one.name for one in evaluation_sets.distinct(sets[1:])] == ["champion", "x"]


def test_a_data_set_that_is_gone_is_named_with_the_ways_out(
    store: ModelStore, engine: Engine, bundled: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(BadData, match=r"evaluation set anchor: there is no data set 1{16} .*evaluations retire anchor"):
        evaluation_sets.assemble(tmp_path, store, engine, bundled, "1", frozenset())
    (left,) = evaluation_sets.assemble(tmp_path, store, engine, bundled, "1", {"anchor", "champion"})
    assert (left.name, len(left.split)) == ("candidate", len(bundled.test))


# Through the flow and the command line


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("prefect")
def test_a_candidate_of_another_data_set_leaves_the_champion_until_the_operator_decides(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits of the second data set are turned: a version trained on them recognises no upright ones."""
    from flows.ingest import ingest
    from flows.retrain import retrain
    from models.connections import Platform
    from models.judging import judge

    for module in (registries, registry_reader):
        monkeypatch.setattr(module, "MODEL_NAME", "another-data-set")
    monkeypatch.setattr(registries, "EXPERIMENT_NAME", "another-data-set")
    quick = recipes.SIGMOID.model_copy(update={"epochs": 3})
    monkeypatch.setattr(recipes, "find", lambda _: quick)
    monkeypatch.setattr(recipes, "floor", lambda _: 0.3)
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    bundled = sources.read("bundled", mnist=None, cache=tmp_path)
    everything = datasets.join(bundled.train, bundled.validation, bundled.test)
    np.savez(tmp_path / "turned.npz", images=quarter_turn(everything.images, 1), labels=everything.labels)

    def digits(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    ingest("bundled")
    assert "promote: there is no champion" in retrain()
    first = ingest(str(tmp_path / "turned.npz"))
    said = retrain()
    assert "v2: hold: anchor: accuracy falls from" in said
    platform = Platform(load_settings())
    assert platform.models.registry.version() == "1"
    named = json.loads(platform.registry.version_tags("2")["evaluation_sets"])
    assert (
        set(named) == {"anchor", "champion", "candidate"} and named["anchor"] == named["champion"] != named["candidate"]
    )

    listed = digits("evaluations")
    assert named["anchor"] in listed and bundled.fingerprint in listed and "corruption inverted" in listed
    for name in ("anchor", "champion"):
        digits("evaluations", "retire", name, "--reason", "the paper is fed in sideways now")
    listed = digits("evaluations")
    assert named["anchor"] not in listed and "the paper is fed in sideways now" in listed
    champion, verdict = judge(platform, "2")
    assert (champion, verdict.decision) == ("1", "promote") and verdict.reasons[0].startswith("candidate: ")
    digits("evaluations", "reinstate", "champion", "--reason", "not all of it")
    assert judge(platform, "2")[1].decision == "hold"
    digits("evaluations", "pin", first, "--reason", "the paper is fed in sideways now")
    pinned = ledger.entries(platform.engine, "anchor")[-1]
    assert (pinned.action, pinned.before, pinned.after) == ("pin", bundled.fingerprint, first)
    assert named["candidate"] in digits("evaluations")
    assert "champion: accuracy falls from" in judge(platform, "2")[1].sentence
