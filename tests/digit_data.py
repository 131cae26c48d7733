"""Real and made-up digits for the tests of data sets and of their sources."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from digits.data import sources
from digits.data.datasets import BadData, Dataset
from digits.images import Split

HEADER = "label," + ",".join(f"pixel{pixel}" for pixel in range(784))
tmp_path_is_shared = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)


def read(source: str | Path, cache: Path, **more: Any) -> Dataset:
    nowhere = cache / "nowhere"
    return sources.read(str(source), **{"mnist": None, "cache": cache, "keras_cache": nowhere, **more})


def read_labelled(path: Path) -> Split:
    """All images of a file or folder whose rows can all be read; raises BadData naming the first other row."""
    rows = sources.read_rows(path)
    for name, reason in rows.unreadable.items():
        raise BadData(f"{path.name}, {name} {reason}")
    return rows.split


def pairs(*splits: Split) -> Counter[tuple[bytes, int]]:
    return Counter(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )


def made_up(seed: int, n: int) -> Split:
    """Random patches of 4 x 4 pixels inside a border of paper, the brightest pixel in the middle of each image."""
    random = np.random.default_rng(seed)
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = np.kron(random.integers(0, 256, (n, 5, 5)), np.ones((4, 4)))
    images[:, 14, 14] = 255
    return Split(images, random.integers(0, 10, n).astype(np.uint8))
