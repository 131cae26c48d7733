"""A recorded training done again gives the same weights, and registers nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Runs

from digits.data.datasets import BadData
from models import replay
from models.recipes import SIGMOID
from models.registry import RegistryWriter
from models.runs import find


@pytest.fixture
def writer(trained_runs: Runs) -> RegistryWriter:
    return RegistryWriter(trained_runs.uri)


def test_the_weights_are_identical_and_nothing_is_registered(trained_runs: Runs, writer: RegistryWriter) -> None:
    before = (
        [version.version for version in writer.client.search_model_versions("name='digits'")],
        len(writer.client.search_runs([writer.experiment_id])),
    )
    outcome = replay.train_again(replay.look_up(writer, trained_runs.other_seed), trained_runs.datasets)
    assert outcome.identical
    assert f"digits v{trained_runs.other_seed} " in outcome.sentence and "identical" in outcome.sentence
    after = (
        [version.version for version in writer.client.search_model_versions("name='digits'")],
        len(writer.client.search_runs([writer.experiment_id])),
    )
    assert after == before


def test_the_data_is_the_recorded_one(trained_runs: Runs, writer: RegistryWriter) -> None:
    one_label_apart = replay.look_up(writer, trained_runs.other_label)
    first = replay.look_up(writer, trained_runs.first)
    assert one_label_apart.recipe == first.recipe and one_label_apart.run.tags["dataset"] != first.run.tags["dataset"]
    assert replay.train_again(one_label_apart, trained_runs.datasets).identical
    run = one_label_apart.run
    elsewhere = replace(run, tags={**run.tags, "dataset": first.run.tags["dataset"]})
    assert not replay.train_again(replace(one_label_apart, run=elsewhere), trained_runs.datasets).identical


def test_where_the_weights_differ_the_reason_is_looked_for(trained_runs: Runs, writer: RegistryWriter) -> None:
    recorded = replay.look_up(writer, trained_runs.first)
    elsewhere = replace(
        recorded,
        recipe=recorded.recipe.model_copy(update={"seed": 5}),  # stands for another arithmetic
        environment={
            **recorded.environment,
            "numpy": "1.0",
            "processor": "abacus",
            "TF_NUM_INTRAOP_THREADS": "16",
            "device": "L4",
        },
    )
    outcome = replay.train_again(elsewhere, trained_runs.datasets)
    assert not outcome.identical
    assert "the weights differ" in outcome.sentence
    assert "TF_NUM_INTRAOP_THREADS: 16 → " in outcome.sentence and "device: L4 → " in outcome.sentence
    assert "numpy: 1.0 → " in outcome.sentence and "processor: abacus → " in outcome.sentence
    assert "keras" not in outcome.sentence


def test_a_difference_without_a_recorded_reason_is_said() -> None:
    outcome = replay.Replay("digits v1", "a" * 64, "b" * 64, [])
    assert "nothing that was recorded" in outcome.sentence


def test_a_data_set_that_is_gone_is_named(trained_runs: Runs, writer: RegistryWriter, tmp_path: Path) -> None:
    recorded = replay.look_up(writer, trained_runs.first)
    with pytest.raises(BadData, match=f"no data set {recorded.run.tags['dataset']}.*ingest it again"):
        replay.train_again(recorded, tmp_path)


def test_runs_that_cannot_be_replayed(trained_runs: Runs, writer: RegistryWriter) -> None:
    run = find(writer, trained_runs.first)
    failed, foreign = (
        writer.client.create_run(writer.experiment_id, tags=dict(tags)).info.run_id
        for tags in ({"dataset": "0" * 16}, {"dataset": "0" * 16, "weights_hash": "0", "git_commit": "c0ffee00" * 5})
    )
    try:
        writer.client.set_terminated(failed, "FAILED")
        with pytest.raises(LookupError, match="has no tag weights_hash, it ended as FAILED"):
            replay.look_up(writer, failed)
        recipe = {**SIGMOID.model_dump(mode="json"), "momentum": 0.9}
        writer.client.log_dict(foreign, recipe, "recipe.json")
        with pytest.raises(ValueError, match="has a recipe of c0ffee00 that this code cannot train: momentum"):
            replay.look_up(writer, foreign)
    finally:
        writer.client.delete_run(failed)
        writer.client.delete_run(foreign)
    assert find(writer, run.id) == run
