"""How a data set is split again, grown, fingerprinted, stored and found."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_data import made_up, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from digits.data import datasets
from digits.data.datasets import BadData, Dataset
from digits.images import Split

# Splitting again, and growing


@settings(deadline=None, max_examples=25)
@given(fraction=st.floats(0.05, 0.9), seed=st.integers(0, 2**32))
def test_resplit_keeps_every_image_and_every_digits_share(fraction: float, seed: int, bundled: Dataset) -> None:
    again = datasets.resplit(bundled, fraction, seed)
    pool = len(bundled.train) + len(bundled.validation)
    assert len(again.validation) == round(fraction * pool)
    assert pairs(again.train, again.validation) == pairs(bundled.train, bundled.validation)
    assert again.test is bundled.test and again.parent == bundled.fingerprint
    total = np.add(again.train.counts(), again.validation.counts())
    assert np.abs(again.validation.counts() - total * fraction).max() <= 1.1
    assert datasets.resplit(bundled, fraction, seed).fingerprint == again.fingerprint


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 20])
def test_resplit_refuses_what_is_no_fraction(fraction: float, bundled: Dataset) -> None:
    with pytest.raises(ValueError, match=f"expected a validation fraction between 0 and 1, got {fraction}"):
        datasets.resplit(bundled, fraction, 0)


def test_extend_adds_to_train_and_validation_only(bundled: Dataset) -> None:
    new = made_up(1, 500)
    grown = datasets.extend(bundled, new, validation_fraction=0.2, seed=0)
    assert grown.test is bundled.test
    assert pairs(grown.train, grown.validation) == pairs(bundled.train, bundled.validation, new)
    assert 60 < len(grown.validation) - len(bundled.validation) < 140
    assert grown.parent == bundled.fingerprint != grown.fingerprint
    assert grown.source == "bundled"


def test_a_data_set_knows_where_its_growth_began(bundled: Dataset, tmp_path: Path) -> None:
    labelled = Split(255 - bundled.train.images[:9], bundled.train.labels[:9])
    grown = datasets.extend(bundled, labelled, validation_fraction=0.1, seed=0)
    again = datasets.extend(grown, Split(labelled.images // 2, labelled.labels), validation_fraction=0.1, seed=0)
    for stored in (grown, again):  # not the source, which only they name
        datasets.save(stored, tmp_path)
    first = bundled.fingerprint
    assert list(datasets.lineage(tmp_path, again.fingerprint)) == [again.fingerprint, grown.fingerprint, first]
    assert list(datasets.lineage(tmp_path, first)) == [first]


def test_the_lineage_of_a_data_set_that_names_itself_ends(bundled: Dataset, tmp_path: Path) -> None:
    datasets.save(replace(bundled, parent=bundled.fingerprint), tmp_path)
    assert list(datasets.lineage(tmp_path, bundled.fingerprint)) == [bundled.fingerprint]


def test_extend_leaves_out_and_counts_images_of_the_test_part(bundled: Dataset) -> None:
    leaked = Split(bundled.test.images[:7], (bundled.test.labels[:7] + 1) % 10)
    grown = datasets.extend(bundled, leaked, validation_fraction=0.2, seed=0)
    assert grown.fingerprint == bundled.fingerprint and grown.parent is None
    assert grown.overlap_removed == bundled.overlap_removed + 7


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 99), fraction=st.floats(0, 1))
def test_extending_again_changes_nothing(n: int, cut: int, seed: int, fraction: float, bundled: Dataset) -> None:
    """Also when a crash left only a part of it behind, and when the same images come twice at once."""
    new = made_up(seed, n)
    extend = partial(datasets.extend, validation_fraction=fraction, seed=seed)
    once = extend(bundled, new)
    assert extend(once, new).fingerprint == once.fingerprint
    assert extend(bundled, datasets.join(new, new)).fingerprint == once.fingerprint
    if 0 < cut < n:
        first = extend(bundled, Split(new.images[:cut], new.labels[:cut]))
        assert extend(first, new).fingerprint == once.fingerprint


def test_a_corrected_label_is_new_and_stays_on_its_side(bundled: Dataset) -> None:
    new = made_up(1, 50)
    once = datasets.extend(bundled, new, validation_fraction=0.3, seed=0)
    corrected = Split(new.images, (new.labels + 1) % 10)
    twice = datasets.extend(once, corrected, validation_fraction=0.3, seed=0)
    assert len(twice.train) + len(twice.validation) == len(once.train) + len(once.validation) + 50
    assert not {key for key, _ in pairs(twice.train)} & {
        key for key, _ in pairs(twice.validation) - pairs(bundled.validation)
    }


# The arrays


def test_a_data_set_cannot_be_changed(bundled: Dataset) -> None:
    with pytest.raises(ValueError, match="read-only"):
        bundled.train.images[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        bundled.test.labels[:] = 0


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((2, 28, 28)), np.zeros(2, np.uint8), r"expected uint8 images of shape \(n, 28, 28\), got float64"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.uint8), r"expected uint8 labels of shape \(2,\), got uint8 \(3,\)"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(2, int), r"expected uint8 labels of shape \(2,\), got int64 \(2,\)"),
        (np.zeros((2, 28, 28), np.uint8), [1, 2], r"expected uint8 labels of shape \(2,\), got list \(2,\)"),
        (np.zeros((2, 28, 28), np.uint8), np.array([1, 10], np.uint8), r"expected labels 0 to 9, got 10 in row 1"),
    ],
)  # fmt: skip
def test_a_split_keeps_the_pixel_contract(images: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Split(images, labels)


def test_the_fingerprint_is_of_the_content(bundled: Dataset) -> None:
    assert len(bundled.fingerprint) == 16 and int(bundled.fingerprint, 16) >= 0
    assert replace(bundled, source="other", overlap_removed=3).fingerprint == bundled.fingerprint
    one_pixel = bundled.test.images.copy()
    one_pixel[5, 5, 5] ^= 1
    assert replace(bundled, test=Split(one_pixel, bundled.test.labels)).fingerprint != bundled.fingerprint
    swapped = replace(bundled, validation=bundled.test, test=bundled.validation)
    assert swapped.fingerprint != bundled.fingerprint


# The store


def test_save_and_load(bundled: Dataset, tmp_path: Path) -> None:
    dataset = replace(bundled, overlap_removed=2, parent="0" * 16)
    path = datasets.save(dataset, tmp_path / "var" / "datasets")
    found = datasets.load(path.parent, path.name)
    assert path.name == dataset.fingerprint == found.fingerprint
    assert (found.source, found.overlap_removed, found.parent) == ("bundled", 2, "0" * 16)
    assert all((array == dataset.arrays()[name]).all() for name, array in found.arrays().items())


def test_the_manifest_tells_what_is_there(bundled: Dataset, tmp_path: Path) -> None:
    path = datasets.save(bundled, tmp_path)
    about = datasets.manifest(tmp_path, path.name)
    assert about == {**json.loads((path / "manifest.json").read_text()), "location": f"{path}/arrays.npz"}
    assert about["images"] == {"train": 1258, "validation": 269, "test": 270}
    assert about["images_per_digit"]["test"] == np.bincount(bundled.test.labels).tolist()
    assert about["source"] == "bundled" and about["fingerprint"] == path.name
    assert about["created_at"].endswith("+00:00")


def test_a_data_set_is_stored_once(bundled: Dataset, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: datasets.save(bundled, tmp_path), range(4)))
    assert len(paths) == 1
    before = {file: file.stat().st_mtime_ns for file in paths.pop().iterdir()}
    path = datasets.save(replace(bundled, source="another"), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", path.name]


def full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing_half_written(
    bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        datasets.save(bundled, tmp_path)
    with pytest.raises(BadData):
        datasets.set_current(tmp_path, bundled.fingerprint)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("survived", [0, 1])
def test_a_killed_save_is_made_good_by_the_next(survived: int, bundled: Dataset, tmp_path: Path) -> None:
    """Killed while writing the arrays, or with the arrays written and before the manifest is."""
    script = (
        "import os, sys, numpy as np; from pathlib import Path; from digits.data.datasets import Dataset, Split, save\n"
        "written = []\n"
        f"os.fsync = lambda file: os.kill(os.getpid(), 9) if len(written) == {survived} else written.append(file)\n"
        "split = Split(np.ones((9, 28, 28), np.uint8), np.ones(9, np.uint8))\n"
        "save(Dataset(split, split, split, 'made up'), Path(sys.argv[1]))\n"
    )
    root = Path(datasets.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script, tmp_path], cwd=root, check=False).returncode == -9
    remains = [file.name for file in tmp_path.iterdir() if file.name != ".lock"]
    assert len(remains) == 1 and remains[0].endswith(".tmp")
    path = datasets.save(bundled, tmp_path)
    assert datasets.load(tmp_path, path.name).fingerprint == bundled.fingerprint
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", path.name]


def test_a_changed_store_is_refused(bundled: Dataset, tmp_path: Path) -> None:
    path = datasets.save(bundled, tmp_path)
    arrays = {name: array.copy() for name, array in bundled.arrays().items()}
    arrays["test_labels"][0] = (arrays["test_labels"][0] + 1) % 10
    np.savez(path / "arrays.npz", **arrays)
    with pytest.raises(BadData, match=r"was changed after it was stored: .* remove the folder and ingest it again"):
        datasets.load(tmp_path, path.name)
    body = (path / "arrays.npz").read_bytes()
    (path / "arrays.npz").write_bytes(body[:5000])
    with pytest.raises(BadData, match=r"^arrays\.npz cannot be read, it is damaged or cut off"):
        datasets.load(tmp_path, path.name)
    (path / "manifest.json").write_text("{")
    with pytest.raises(BadData, match=r"^manifest\.json cannot be read"):
        datasets.load(tmp_path, path.name)


@pytest.mark.parametrize("fingerprint", ["../../etc", "", "0123456789ABCDEF", "0123456789abcde\n", "0" * 17])
def test_what_is_no_fingerprint_reaches_no_file(fingerprint: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="is no fingerprint of a data set, expected 16 hex digits"):
        datasets.load(tmp_path, fingerprint)


def test_the_current_data_set(bundled: Dataset, tmp_path: Path) -> None:
    assert datasets.current(tmp_path / "none") is None
    with pytest.raises(BadData, match=f"^there is no data set {'0' * 16} in .*; ingest it again$"):
        datasets.set_current(tmp_path, "0" * 16)
    first = datasets.save(bundled, tmp_path).name
    second = datasets.save(datasets.resplit(bundled, 0.2, 0), tmp_path).name
    for fingerprint in (first, second):
        datasets.set_current(tmp_path, fingerprint)
        assert datasets.current(tmp_path) == fingerprint
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([".lock", "current", first, second])


def test_a_full_disk_leaves_the_current_data_set_current(
    bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = datasets.save(bundled, tmp_path).name
    second = datasets.save(datasets.resplit(bundled, 0.2, 0), tmp_path).name
    datasets.set_current(tmp_path, first)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        datasets.set_current(tmp_path, second)
    assert datasets.current(tmp_path) == first
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([".lock", "current", first, second])
