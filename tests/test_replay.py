"""A recorded training done again gives the same weights, and registers nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Runs

from digits.data.datasets import BadData
from flows import replay
from flows.connections import Platform
from models.recipes import SIGMOID
from models.registry import RegistryWriter
from models.runs import find


@pytest.fixture
def platform(trained_runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setenv("DIGITS_HOME", str(trained_runs.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained_runs.uri)
    return Platform()


def test_the_weights_are_identical_and_nothing_is_registered(trained_runs: Runs, platform: Platform) -> None:
    registry = RegistryWriter(trained_runs.uri)
    before = (
        [version.version for version in registry.client.search_model_versions("name='digits'")],
        len(registry.client.search_runs([registry.experiment_id])),
    )
    outcome = replay.train_again(platform, replay.look_up(platform, trained_runs.other_seed))
    assert outcome.identical
    assert f"digits v{trained_runs.other_seed} " in outcome.sentence and "identical" in outcome.sentence
    after = (
        [version.version for version in registry.client.search_model_versions("name='digits'")],
        len(registry.client.search_runs([registry.experiment_id])),
    )
    assert after == before


def test_the_data_is_the_recorded_one(trained_runs: Runs, platform: Platform) -> None:
    one_label_apart = replay.look_up(platform, trained_runs.other_label)
    first = replay.look_up(platform, trained_runs.first)
    assert one_label_apart.recipe == first.recipe and one_label_apart.dataset != first.dataset
    assert replay.train_again(platform, one_label_apart).identical
    assert not replay.train_again(platform, replace(one_label_apart, dataset=first.dataset)).identical


def test_where_the_weights_differ_the_reason_is_looked_for(trained_runs: Runs, platform: Platform) -> None:
    recorded = replay.look_up(platform, trained_runs.first)
    elsewhere = replace(
        recorded,
        recipe=recorded.recipe.model_copy(update={"seed": 5}),  # stands for another arithmetic
        environment={**recorded.environment, "numpy": "1.0", "processor": "abacus"},
    )
    outcome = replay.train_again(platform, elsewhere)
    assert not outcome.identical
    assert "the weights differ" in outcome.sentence
    assert "numpy: 1.0 → " in outcome.sentence and "processor: abacus → " in outcome.sentence
    assert "keras" not in outcome.sentence


def test_a_difference_without_a_recorded_reason_is_said() -> None:
    outcome = replay.Replay("digits v1", "a" * 64, "b" * 64, [])
    assert "though nothing that was recorded" in outcome.sentence


def test_a_data_set_that_is_gone_is_named(
    trained_runs: Runs, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = replay.look_up(platform, trained_runs.first)
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    with pytest.raises(BadData, match=f"no data set {recorded.dataset}.*ingest it again"):
        replay.train_again(Platform(), recorded)


def test_runs_that_cannot_be_replayed(trained_runs: Runs, platform: Platform) -> None:
    registry = RegistryWriter(trained_runs.uri)
    run = find(registry, trained_runs.first)
    failed, foreign = (
        registry.client.create_run(registry.experiment_id, tags=dict(tags)).info.run_id
        for tags in ({"dataset": "0" * 16}, {"dataset": "0" * 16, "weights_hash": "0", "git_commit": "c0ffee00" * 5})
    )
    try:
        registry.client.set_terminated(failed, "FAILED")
        with pytest.raises(LookupError, match="has no tag weights_hash, it ended as FAILED"):
            replay.look_up(platform, failed)
        recipe = {**SIGMOID.model_dump(mode="json"), "momentum": 0.9}
        registry.client.log_dict(foreign, recipe, "recipe.json")
        with pytest.raises(ValueError, match="has a recipe of c0ffee00 that this code cannot train: momentum"):
            replay.look_up(platform, foreign)
    finally:
        registry.client.delete_run(failed)
        registry.client.delete_run(foreign)
    assert find(registry, run.id) == run
