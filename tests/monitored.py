"""A small monitored world for the tests: real digits, a version that answers them, its reference sample, and traffic."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digits.data import datasets, sources
from digits.images import Images, Labels
from digits.reference import Reference
from digits.storage.predictions import PredictionWindow

START = datetime(2026, 1, 5, 8, tzinfo=UTC)


@cache
def digits() -> tuple[Images, Labels]:
    """MNIST's 10,000 test digits where `DIGITS_MNIST` is set, else scikit-learn's 1,797; in random order."""
    mnist = os.environ.get("DIGITS_MNIST")
    dataset = sources.read("mnist" if mnist else "bundled", mnist=Path(mnist) if mnist else None, cache=Path("none"))
    split = dataset.test if mnist else datasets.join(dataset.train, dataset.validation, dataset.test)
    order = np.random.default_rng(0).permutation(len(split.images))
    return split.images[order], split.labels[order]


def parts() -> tuple[slice, slice, slice]:
    """Trained on, reference and held out: a fifth, two fifths, two fifths."""
    fifth = len(digits()[0]) // 5
    return slice(0, fifth), slice(fifth, 3 * fifth), slice(3 * fifth, 5 * fifth)


@cache
def _version() -> Callable[[Images], NDArray[np.float32]]:
    """Ridge regression onto the ten digits, with a softmax."""
    images, labels = (array[parts()[0]] for array in digits())
    pixels = _pixels(images)
    weights = np.linalg.solve(pixels.T @ pixels + 20 * np.eye(785), pixels.T @ np.eye(10)[labels])

    def answer(images: Images) -> NDArray[np.float32]:
        scores = 8 * _pixels(images) @ weights
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: NDArray[np.float32] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    return answer


def _pixels(images: Images) -> NDArray[np.float64]:
    return np.pad(images.reshape(len(images), 784) / 255, ((0, 0), (0, 1)), constant_values=1)


def answer(images: Images) -> NDArray[np.float32]:
    return _version()(images)


@cache
def reference() -> Reference:
    images, labels = (array[parts()[1]] for array in digits())
    return Reference(images, labels, answer(images))


def held_out() -> tuple[Images, Labels]:
    images, labels = digits()
    return images[parts()[2]], labels[parts()[2]]


def window(
    images: Images, labels: NDArray[np.integer] | None = None, audited: NDArray[np.bool_] | None = None
) -> PredictionWindow:
    """These images as answered traffic, one a second; the labels are an auditor's unless `audited` says which are."""
    count = len(images)
    probabilities = answer(images)
    known = np.full(count, -1, np.int8) if labels is None else labels.astype(np.int8)
    return PredictionWindow(
        ids=[f"id{i}" for i in range(count)],
        at=[START + timedelta(seconds=i) for i in range(count)],
        versions=["7"] * count,
        routes=["/classify"] * count,
        clients=[""] * count,
        images=images,
        digits=probabilities.argmax(axis=1).astype(np.uint8),
        probabilities=probabilities,
        labels=known,
        audited=known >= 0 if audited is None else audited,
        digit_scores=np.full(count, np.nan, np.float32),
        places=[None] * count,
    )
