"""Moved and encoded copies are found, other images of the same digit are not."""

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from digit_data import read
from PIL import Image

from digits.data import datasets, near_duplicates
from digits.data.datasets import Dataset
from digits.images import Split


def as_jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: np.roll(image, (1, -1), axis=(0, 1)),
        as_jpeg,
        lambda image: as_jpeg(np.roll(image, 1, axis=0)),
        lambda image: (image * 0.8).astype(np.uint8),
    ],
)
def test_copies_are_found(copy: Callable[[np.ndarray], np.ndarray], bundled: Dataset) -> None:
    copies = np.stack([copy(image) for image in bundled.train.images[:200]])
    found = near_duplicates.near_duplicates(copies, bundled.train.images)
    assert len(found) >= 196 and np.mean([row == other for row, other in found.items()]) > 0.97


def test_the_size_of_the_batches_changes_nothing(bundled: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    images, others = np.roll(bundled.train.images[:40], 1, axis=1), bundled.train.images[:100]
    found = near_duplicates.near_duplicates(images, others)
    monkeypatch.setattr(near_duplicates, "MAX_SIMILARITIES", 700)
    assert near_duplicates.near_duplicates(images, others) == found and len(found) >= 39


def test_the_count_is_stored_and_changes_no_fingerprint(bundled: Dataset, tmp_path: Path) -> None:
    assert near_duplicates.count(bundled) == 28  # 8 x 8 pixels of 43 writers, enlarged
    moved = Split(np.roll(bundled.test.images, 1, axis=1), bundled.test.labels)
    leaking = replace(bundled, train=datasets.join(bundled.train, moved))
    assert near_duplicates.count(leaking) == len(bundled.test)
    counted = replace(bundled, near_duplicates=28)
    assert datasets.save(counted, tmp_path).name == bundled.fingerprint
    assert datasets.manifest(tmp_path, bundled.fingerprint)["near_duplicates"] == 28
    assert datasets.load(tmp_path, bundled.fingerprint).near_duplicates == 28


@pytest.mark.skipif("DIGITS_MNIST" not in os.environ, reason="set DIGITS_MNIST to the path of an mnist.npz")
def test_mnist_has_few(tmp_path: Path) -> None:
    mnist = read("mnist", tmp_path, mnist=Path(os.environ["DIGITS_MNIST"]))
    found = near_duplicates.near_duplicates(mnist.test.images, mnist.train.images)
    assert len(found) <= 10 and {int(mnist.test.labels[row]) for row in found} == {1}
