"""Data sets that grow, and files of the inbox that are not what they should be: rows 2 and 13, on MNIST."""

import gzip
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.field.scenario import Finding, Scenario
from digits.data import datasets, inbox, near_duplicates, perturbations, sources
from digits.data.datasets import Dataset
from digits.images import Images, Split
from digits.settings import load_settings

ROWS = 10_000  # of the source that grows
FILE = 500  # images of a file of the inbox
BOMB_BYTES = 3_000_000_000


@cache
def mnist() -> Dataset:
    """MNIST, of DIGITS_MNIST."""
    settings = load_settings()
    return sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)


# Row 2


def drawn_again(split: Split, seed: int = 0) -> tuple[Split, Split]:
    """Training and test images as they were divided before: a stratified drawing from all rows."""
    rng, test = np.random.default_rng(seed), np.zeros(len(split), bool)
    order = rng.permutation(len(split))
    for digit in range(10):
        own = order[split.labels[order] == digit]
        test[own[: round(0.15 * len(own))]] = True
    return _pick(split, ~test), _pick(split, test)


def by_content(split: Split) -> tuple[Split, Split]:
    """Training (with validation) and test images as they are divided now."""
    dataset = datasets.divide("a source", split, seed=0)
    return datasets.join(dataset.train, dataset.validation), dataset.test


def growth(repetitions: int) -> Finding:
    """A source of 10,000 rows grows by one: how many images of the new test part was the champion trained on?"""
    pool, rng = mnist().train, np.random.default_rng(0)
    leaked: dict[str, list[int]] = {"before": [], "now": []}
    sizes, rarest = [], []
    for _ in range(repetitions):
        rows = rng.choice(len(pool), ROWS + 1, replace=False)
        for name, divide in (("before", drawn_again), ("now", by_content)):
            learned, _ = divide(_pick(pool, rows[1:]))
            _, test = divide(_pick(pool, rows))
            leaked[name].append(int(np.isin(datasets.digests(test.images), datasets.digests(learned.images)).sum()))
        sizes.append(len(test))
        rarest.append(min(test.counts()))
    return Finding(
        f"{np.mean(leaked['before']):.0f} of {round(0.15 * ROWS)} test images had been trained on, in {repetitions} growths by one row",
        f"at most {max(leaked['now'])} had been",
        f"the test part has {min(sizes):,} to {max(sizes):,} images, the rarest digit at least {min(rarest)} (stratified: 1,500 and 135)",
        max(leaked["now"]) == 0,
    )


def _jpeg(image: Images, quality: int = 75) -> Images:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


COPIES: dict[str, Callable[[Images], Images]] = {
    "moved by a pixel": lambda image: np.roll(image, (1, -1), axis=(0, 1)),
    "JPEG of quality 75": _jpeg,
    "moved, JPEG of quality 50": lambda image: _jpeg(np.roll(image, (-1, 1), axis=(0, 1)), 50),
}


def copies(repetitions: int) -> Finding:
    """Copies of training images: how many are found, and how many of MNIST's test images are taken for copies."""
    data, rng = mnist(), np.random.default_rng(0)
    rows = rng.choice(len(data.train), 10 * repetitions, replace=False)
    found = {
        name: len(_near(np.stack([copy(image) for image in data.train.images[rows]]))) / len(rows)
        for name, copy in COPIES.items()
    }
    false = len(_near(data.test.images))
    return Finding(
        f"comparing bytes finds none of {len(rows):,} copies",
        "found: " + ", ".join(f"{share:.1%} {name}" for name, share in found.items()),
        f"{false} of {len(data.test):,} test images are taken for copies (counted, not removed)",
        min(found.values()) >= 0.98 and false <= 0.005 * len(data.test),
    )


def _near(images: Images) -> dict[int, int]:
    return near_duplicates.near_duplicates(images, mnist().train.images)


# Row 13


def shuffled(split: Split, rng: np.random.Generator) -> Split:
    """The labels in another order."""
    return Split(split.images, rng.permutation(split.labels))


def half_shuffled(split: Split, rng: np.random.Generator) -> Split:
    """The labels of the second half in another order."""
    half = len(split) // 2
    return Split(split.images, np.concatenate([split.labels[:half], rng.permutation(split.labels[half:])]))


def half_inverted(split: Split, rng: np.random.Generator) -> Split:
    """The images of a random half with dark ink."""
    inverted = rng.permutation(len(split)) < len(split) // 2
    return Split(np.where(inverted[:, None, None], 255 - split.images, split.images), split.labels)


def noise(split: Split, rng: np.random.Generator) -> Split:
    """Independent pixels with any value."""
    return Split(rng.integers(0, 256, split.images.shape, dtype=np.uint8), split.labels)


def framed_noise(split: Split, rng: np.random.Generator) -> Split:
    """Independent pixels where MNIST has its digits, with paper around them."""
    images = np.zeros_like(split.images)
    images[:, 4:24, 4:24] = rng.integers(0, 256, (len(split), 20, 20))
    return Split(images, split.labels)


def perturbed(name: str) -> Callable[[Split, np.random.Generator], Split]:
    """Right labels of digits that the champion has not seen written like this."""
    return lambda split, rng: Split(perturbations.perturbation(name).apply(split.images), split.labels)


def bundled(split: Split, rng: np.random.Generator) -> Split:
    """Digits of other writers, scanned by others: scikit-learn's."""
    data = sources.read("bundled", mnist=None, cache=Path())
    digits = datasets.join(data.train, data.validation, data.test)
    return _pick(digits, rng.choice(len(digits), len(split), replace=False))


BAD = (shuffled, half_shuffled, half_inverted, noise, framed_noise)


@cache
def champion() -> Callable[[Images], Any]:
    """`predict_proba` of the recipe `compact` on MNIST, as it would be served."""
    from models import candidates, export, onnx_model, recipes, training

    recipe = recipes.find("compact")
    trained = training.fit(recipe, candidates.split(mnist(), recipe))
    return onnx_model.load(export.to_onnx(trained.model)).predict_proba


def taken(split: Split, predict_proba: Callable[[Images], Any]) -> Split | None:
    """What the inbox takes in of a file with these images; None where it refuses the file."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "file.npz", images=split.images, labels=split.labels)
        return inbox.read_inbox(Path(folder), predict_proba, settle_seconds=0).labelled


def taken_before(split: Split) -> bool:
    """Whether a file was taken in by the checks of the whole file that there were: its scale and the median of its border."""
    images = split.images
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return bool(images.max() >= 64 and np.median(border) <= 127)
