"""A difference between two runs is named: the label, the commit, the field, the library, and whether the answers differ."""

import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Runs

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from digits.images import Split
from models import run_diff, runs
from models.model_store import ModelStore
from models.registry import RegistryWriter
from models.run_diff import Agreement


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return sources.read("bundled", mnist=None, cache=tmp_path_factory.mktemp("cache"))


def relabelled(split: Split, row: int, label: int) -> Split:
    labels = split.labels.copy()
    labels[row] = label
    return Split(split.images, labels)


def without(split: Split, *rows: int) -> Split:
    return Split(np.delete(split.images, rows, axis=0), np.delete(split.labels, rows))


def picked(split: Split, rows: list[int]) -> Split:
    return Split(split.images[rows], split.labels[rows])


def test_one_changed_label_is_named(bundled: Dataset) -> None:
    was = int(bundled.train.labels[17])
    changed = replace(bundled, train=relabelled(bundled.train, 17, (was + 5) % 10))
    line = f"labels: train image 17 is {(was + 5) % 10}, was {was}"
    assert run_diff.differing_data(bundled, changed) == [line]


def test_a_label_changed_in_the_source_is_named_though_the_split_moves(bundled: Dataset, tmp_path: Path) -> None:
    """The split is drawn per digit: one other label at the source lets other images move to another part."""
    everything = datasets.join(bundled.train, bundled.validation, bundled.test)
    arrays = {"images": everything.images, "labels": everything.labels}
    before = sources.read(_npz(tmp_path / "a.npz", arrays), mnist=None, cache=tmp_path)
    was = int(everything.labels[40])
    arrays["labels"] = relabelled(everything, 40, (was + 1) % 10).labels
    now = sources.read(_npz(tmp_path / "b.npz", arrays), mnist=None, cache=tmp_path)
    lines = run_diff.differing_data(before, now)
    assert lines[0].startswith("labels: ") and lines[0].endswith(f"is {(was + 1) % 10}, was {was}")
    split, row = lines[0].removeprefix("labels: ").split(" image ")
    place = int(row.split(" is ")[0])
    assert (now.splits()[split].images[place] == everything.images[40]).all()
    assert all(line.startswith("moved: ") for line in lines[1:])


def _npz(path: Path, arrays: dict[str, np.ndarray]) -> str:  # type: ignore[type-arg]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def test_images_that_moved_came_and_went_are_counted(bundled: Dataset) -> None:
    moved = replace(
        bundled,
        train=without(bundled.train, 3, 4),
        validation=datasets.join(bundled.validation, picked(bundled.train, [3])),
    )
    lines = run_diff.differing_data(bundled, moved)
    assert lines == ["moved: 1 from train to validation", "only in A: 1 train"]
    assert run_diff.differing_data(moved, bundled) == [
        "moved: 1 from validation to train",
        "only in B: 1 train",
    ]


def test_the_same_images_twice_are_told_apart(bundled: Dataset) -> None:
    twice = replace(bundled, train=datasets.join(bundled.train, picked(bundled.train, [5])))
    assert run_diff.differing_data(bundled, twice) == ["only in B: 1 train"]
    last = len(bundled.train)
    other = replace(twice, train=relabelled(twice.train, last, (int(bundled.train.labels[5]) + 1) % 10))
    assert run_diff.differing_data(twice, other)[0].startswith("labels: train image")


def test_many_labels_are_counted_and_few_are_named(bundled: Dataset) -> None:
    labels = bundled.test.labels.copy()
    labels[:12] = (labels[:12] + 1) % 10
    changed = replace(bundled, test=Split(bundled.test.images, labels))
    (line,) = run_diff.differing_data(bundled, changed)
    assert line.startswith("labels: test image 0 is ") and line.endswith("; and 7 more")
    assert line.count("test image") == 5


def test_no_difference_and_only_another_order(bundled: Dataset) -> None:
    assert run_diff.differing_data(bundled, bundled) == ["the same"]
    order = list(range(len(bundled.train)))[::-1]
    turned = replace(bundled, train=picked(bundled.train, order))
    assert run_diff.differing_data(bundled, turned) == ["the same images and labels in another order"]


def test_fields_that_differ_are_told_one_by_one() -> None:
    before = {"epochs": 30, "seed": 0, "augmentation": {"shear": 0.2, "scale": 0.1}, "gone": 1}
    now = {"epochs": 12, "seed": 0, "augmentation": {"shear": 0.3, "scale": 0.1}, "new": None}
    assert run_diff.differing(before, now) == [
        "epochs: 30 → 12",
        "augmentation.shear: 0.2 → 0.3",
        "gone: 1 → –",
        "new: – → None",
    ]
    assert run_diff.differing(before, before) == []


def test_code_is_compared_by_commit() -> None:
    a, b = "a" * 40, "b" * 40
    assert run_diff.differing_code(a, a) == []
    assert run_diff.differing_code(a + "+", a + "+") == ["both at aaaaaaaa with uncommitted changes, which may differ"]
    assert run_diff.differing_code(a, b + "+") == ["aaaaaaaa → bbbbbbbb", "B has uncommitted changes"]
    assert run_diff.differing_code(a, a + "+") == ["aaaaaaaa → aaaaaaaa", "B has uncommitted changes"]
    assert run_diff.differing_code(None, b) == ["not recorded for A"]


def test_files_that_differ_between_commits_are_listed() -> None:
    log = git("log", "-2", "--format=%H", "--", "models")
    if len(log) < 2:
        pytest.skip("there are no two commits to compare outside a full git checkout")
    now, before = log
    first = git("diff", "--name-only", before, now, "--", "digits", "models", "flows")[0]
    assert run_diff.differing_code(before, now)[0].startswith(f"{before[:8]} → {now[:8]}: {first}")


def git(*words: str) -> list[str]:
    root = Path(__file__).parent.parent
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (3, 14), (40, 22), (0, 9)])
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert Agreement(100, only_a, only_b, 3).p_value == pytest.approx(min(1.0, 2 * tail))


def test_a_difference_by_chance_is_no_difference() -> None:
    assert "no evidence that one is better" in Agreement(900, 10, 14, 50).sentence
    assert Agreement(900, 10, 40, 50).sentence.endswith("B is better")
    assert Agreement(900, 40, 10, 50).sentence.endswith("A is better")


def test_pairs_are_counted_per_image() -> None:
    labels, a, b = (np.array(x, np.uint8) for x in ([0, 1, 2, 3, 4], [0, 1, 2, 9, 9], [0, 1, 9, 3, 8]))
    assert run_diff.agreement(a, b, labels) == Agreement(both_right=2, only_a=1, only_b=1, both_wrong=1)


def test_only_images_in_both_tests_under_the_same_label_are_common(bundled: Dataset) -> None:
    test = bundled.test
    other = relabelled(without(test, 0, 1), 0, (int(test.labels[2]) + 1) % 10)
    shared = run_diff.common(test, other)
    assert shared is not None
    assert (shared.images == test.images[3:]).all() and (shared.labels == test.labels[3:]).all()
    assert run_diff.common(picked(test, [0]), picked(test, [1])) is None


@pytest.fixture(scope="module")
def registry(trained_runs: Runs) -> RegistryWriter:
    return RegistryWriter(trained_runs.uri)


def sections(registry: RegistryWriter, of: Runs, a: str, b: str, folder: Path | None = None) -> dict[str, list[str]]:
    pair = runs.find(registry, a), runs.find(registry, b)
    return run_diff.compare(registry, *pair, folder or of.datasets, ModelStore(of.uri, of.champions)).sections


def test_two_seeds_differ_in_the_seed_alone(registry: RegistryWriter, trained_runs: Runs) -> None:
    found = sections(registry, trained_runs, trained_runs.first, trained_runs.other_seed)
    assert found["recipe"] == ["seed: 0 → 1"]
    assert found["environment"] == ["the same"]
    assert found["data"][0].startswith("the same (")
    assert found["weights"] == ["different"]
    n = len(sources.read("bundled", mnist=None, cache=trained_runs.home).test)
    assert found["answers"][0] == f"on {n} test images"
    assert "exact McNemar" in found["answers"][1]


def test_a_changed_label_is_named_between_real_runs(registry: RegistryWriter, trained_runs: Runs) -> None:
    found = sections(registry, trained_runs, trained_runs.first, trained_runs.other_label)
    assert found["recipe"] == ["the same"]
    label = int(sources.read("bundled", mnist=None, cache=trained_runs.home).train.labels[17])
    assert found["data"][1:] == [f"labels: train image 17 is {(label + 1) % 10}, was {label}"]
    assert found["weights"] == ["different"]
    assert found["answers"][0].endswith("test images common to both data sets")


def test_a_run_is_itself(registry: RegistryWriter, trained_runs: Runs) -> None:
    found = sections(registry, trained_runs, trained_runs.first, trained_runs.first)
    assert found["weights"] == ["identical"]
    assert "only A 0, only B 0" in found["answers"][1] and "p = 1 " in found["answers"][1]


def test_without_the_data_sets_the_samples_of_the_versions_are_asked(
    registry: RegistryWriter, trained_runs: Runs, tmp_path: Path
) -> None:
    found = sections(registry, trained_runs, trained_runs.first, trained_runs.other_label, tmp_path)
    assert any("cannot be compared: there is no data set" in line for line in found["data"])
    assert found["answers"][0].endswith("test images kept with both versions")


def test_a_run_that_became_no_version_has_no_answers(registry: RegistryWriter, trained_runs: Runs) -> None:
    made = registry.client.create_run(
        registry.experiment_id, tags={"recipe": "sigmoid", "dataset": "0" * 16}
    ).info.run_id
    try:
        for name, content in (
            ("recipe.json", {"seed": 7}),
            ("environment.json", {}),
            ("dataset.json", {"source": "x"}),
        ):
            registry.client.log_dict(made, content, name)
        found = sections(registry, trained_runs, trained_runs.first, made)
        assert found["answers"] == [f"cannot be compared: run {made[:8]} became no version"]
        assert found["weights"] == ["not recorded"]
        assert "source: bundled → x" in found["data"]
    finally:
        registry.client.delete_run(made)


def test_the_text_has_every_section(registry: RegistryWriter, trained_runs: Runs) -> None:
    pair = runs.find(registry, trained_runs.first), runs.find(registry, trained_runs.other_seed)
    text = run_diff.compare(
        registry, *pair, trained_runs.datasets, ModelStore(trained_runs.uri, trained_runs.champions)
    ).text
    titles = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert titles == ["A", "B", "data", "code", "recipe", "environment", "weights", "figures", "answers"]
