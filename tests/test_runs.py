"""Runs are found on a real MLflow server by version, by id and by the beginning of an id."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Runs, wait_for

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from models import candidates, runs
from models.recipes import SIGMOID
from models.registry import RegistryWriter
from models.registry_reader import RegistryReader


@pytest.fixture(scope="module")
def registry(trained_runs: Runs) -> RegistryWriter:
    return RegistryWriter(trained_runs.uri)


def test_a_run_is_found_by_version_and_by_id(registry: RegistryWriter, trained_runs: Runs) -> None:
    run = runs.find(registry, trained_runs.other_seed)
    assert run.version == trained_runs.other_seed
    assert (run.status, run.params["seed"], run.tags["recipe"]) == ("FINISHED", "1", "sigmoid")
    assert run.title == f"digits v{run.version} (run {run.id[:8]})"
    for text in (f"v{run.version}", run.id, run.id[:12]):
        assert runs.find(registry, text) == run


def test_the_experiment_is_found_without_mlflow(registry: RegistryWriter) -> None:
    assert RegistryReader(registry.uri).experiment_id() == registry.experiment_id


@pytest.mark.parametrize("text", ["v99999", "99999", "not-a-run", "", "ABCDEF", "0" * 40])
def test_what_is_not_there_is_said(registry: RegistryWriter, text: str) -> None:
    with pytest.raises(LookupError, match=f"no version and no run '{text}'"):
        runs.find(registry, text)


def test_an_ambiguous_beginning_is_refused(registry: RegistryWriter) -> None:
    made = [registry.client.create_run(registry.experiment_id).info.run_id for _ in range(17)]
    try:
        beginnings = [run_id[0] for run_id in made]
        twice = next(letter for letter in beginnings if beginnings.count(letter) > 1)
        if not twice.isdecimal():  # 1 may be a version
            with pytest.raises(LookupError, match=f"runs begin with '{twice}'"):
                runs.find(registry, twice)
        unregistered = runs.find(registry, made[0])
        assert (unregistered.version, unregistered.title) == (None, f"run {made[0][:8]}")
    finally:
        for run_id in made:
            registry.client.delete_run(run_id)


def test_files_of_a_run(registry: RegistryWriter, trained_runs: Runs) -> None:
    run = runs.find(registry, trained_runs.first)
    assert runs.read_json(registry, run, "recipe.json")["epochs"] == 2
    with pytest.raises(LookupError, match=r"has no weights.json; it ended as FINISHED"):
        runs.read_json(registry, run, "weights.json")


def test_trials_of_a_search_count_only_when_registered(registry: RegistryWriter, trained_runs: Runs) -> None:
    parent = runs.find(registry, trained_runs.first)
    trial = registry.client.create_run(registry.experiment_id, tags={"mlflow.parentRunId": parent.id}).info.run_id
    failed = registry.client.create_run(registry.experiment_id).info.run_id
    for run_id, status in ((trial, "FINISHED"), (failed, "FAILED")):
        registry.client.log_metric(run_id, "test_accuracy", 0.5)
        registry.client.set_terminated(run_id, status)
    try:
        listed = {run.id for run in runs.finished(registry)}
        assert parent.id in listed and not {trial, failed} & listed
        registry.client.set_tag(parent.id, "mlflow.parentRunId", trial)
        assert parent.id in {run.id for run in runs.finished(registry)}
    finally:
        registry.client.delete_tag(parent.id, "mlflow.parentRunId")
        registry.client.delete_run(trial)
        registry.client.delete_run(failed)


def test_an_interrupted_training_is_killed_and_a_failed_one_failed(
    registry: RegistryWriter, trained_runs: Runs
) -> None:
    fingerprint = runs.find(registry, trained_runs.first).tags["dataset"]
    dataset = datasets.load(trained_runs.datasets, fingerprint)
    manifest = datasets.manifest(trained_runs.datasets, fingerprint)
    for error, status in ((KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")):
        with pytest.raises(error), registry.run(SIGMOID, manifest, dataset, {}) as run_id:
            raise error
        assert runs.find(registry, run_id).status == status


def test_a_run_names_all_its_data_with_size_digest_and_place(registry: RegistryWriter, trained_runs: Runs) -> None:
    run = runs.find(registry, trained_runs.first)
    stored = datasets.load(trained_runs.datasets, run.tags["dataset"])
    dataset = candidates.split(stored, SIGMOID)
    logged = registry.client.get_run(run.id).inputs.dataset_inputs
    found = {tag.value: given.dataset for given in logged for tag in given.tags if tag.key == "mlflow.data.context"}
    assert len(found) == 3
    for part, split in dataset.splits().items():
        given = found["training" if part == "train" else part]
        assert (given.name, given.digest) == (f"bundled-{part}", dataset.fingerprint)
        assert json.loads(given.profile)["features_shape"] == [len(split), 28, 28]
        assert given.source_type == "local"
        np.testing.assert_array_equal(np.load(json.loads(given.source)["uri"])["test_images"], stored.test.images)


@pytest.mark.parametrize("source_type", ["local", "http"])
def test_the_source_of_a_runs_data_is_the_file_or_url_that_they_were_read_from(
    registry: RegistryWriter, bundled: Dataset, tmp_path: Path, source_type: str
) -> None:
    path = tmp_path / "mnist.npz"
    arrays = {f"{kind}_{part}": getattr(bundled, part) for part in ("train", "test") for kind in "xy"}
    np.savez(path, **{name: split.images if name[0] == "x" else split.labels for name, split in arrays.items()})
    name = "mnist" if source_type == "http" else str(path)
    dataset = sources.read(name, mnist=None, cache=tmp_path, keras_cache=tmp_path / "none")
    datasets.save(dataset, tmp_path / "datasets")
    stored = datasets.load(tmp_path / "datasets", dataset.fingerprint)
    manifest = datasets.manifest(tmp_path / "datasets", dataset.fingerprint)
    with registry.run(SIGMOID, manifest, candidates.split(stored, SIGMOID), {}) as run_id:
        pass
    address = {"local": str(path), "http": sources.MNIST_URL}[source_type]
    for given in registry.client.get_run(run_id).inputs.dataset_inputs:
        assert given.dataset.source_type == source_type
        assert address in json.loads(given.dataset.source).values()
        tags = {tag.key: tag.value for tag in given.tags}
        assert (tags["origin"], tags["stored_copy"]) == (address, manifest["location"])
    registry.client.delete_run(run_id)


def test_nothing_is_called_plain_accuracy_or_loss(registry: RegistryWriter, trained_runs: Runs) -> None:
    names = runs.find(registry, trained_runs.first).metrics.keys()
    assert {"train_accuracy", "val_accuracy", "test_accuracy", "train_loss", "val_loss"} <= names
    assert not {"accuracy", "loss"} & names


def test_a_run_has_system_metrics(registry: RegistryWriter, trained_runs: Runs) -> None:
    run = runs.find(registry, trained_runs.first)
    manifest = datasets.manifest(trained_runs.datasets, run.tags["dataset"])
    dataset = datasets.load(trained_runs.datasets, run.tags["dataset"])
    with registry.run(SIGMOID, manifest, dataset, {}) as run_id:
        wait_for(lambda: "system/cpu_utilization_percentage" in registry.client.get_run(run_id).data.metrics)
    measured = registry.client.get_run(run_id).data.metrics
    assert measured["system/system_memory_usage_megabytes"] > 0
    registry.client.delete_run(run_id)
