"""The gate on trainings whose truth is known: another seed of the same recipe must be held, a real improvement promoted.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.gate

To take minutes and not hours, the recipe is `compact` with few epochs. A pair are two seeds of it. The improvement is the same
network with one epoch more or less of training, chosen so that the better one is ahead by at least half a point on images that the
gate does not see; that truth is printed beside what the gate says on the 10,000 test images.
"""

import argparse
import time
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from digits import sources
from digits.datasets import Dataset, Split
from digits.images import Labels
from digits.settings import settings
from models import evaluation, gate, training
from models.recipes import COMPACT, Recipe

POINTS = 0.005  # of the improvement, at least
TRUTH = 5_000  # images kept from everybody to learn the truth by


class Contestant:
    """One training and its answers."""

    def __init__(self, recipe: Recipe, data: Dataset, truth: Split) -> None:
        model = training.fit(recipe, data).model
        self.digits: Labels = training.forward(model, data.test.images).argmax(axis=1).astype(np.uint8)
        self.truth = float((training.forward(model, truth.images).argmax(axis=1) == truth.labels).mean())
        corruption = evaluation.corruption_accuracy(lambda images: training.forward(model, images), data.test)
        self.facts = gate.Facts(corruption, size_bytes=500_000, milliseconds=0.1)


def keep_apart(data: Dataset) -> tuple[Dataset, Split]:
    """The data set without some training images, and those."""
    pool, random = data.train, np.random.default_rng(0)
    chosen: NDArray[np.bool_] = np.zeros(len(pool), dtype=bool)
    chosen[random.permutation(len(pool))[:TRUTH]] = True
    kept, truth = (Split(pool.images[part], pool.labels[part]) for part in (~chosen, chosen))
    return Dataset(kept, data.validation, data.test, data.source), truth


def verdict(data: Dataset, candidate: Contestant, champion: Contestant) -> gate.Verdict:
    """As a retraining judges, with the usual policy."""
    sample = gate.Sample("test images", data.test.labels, candidate.digits, champion.digits)
    return gate.judge([sample], candidate.facts, champion.facts, gate.Policy())


def main() -> None:
    """Print both rates with the counts behind them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--weaker-epochs", type=int, default=2)
    arguments = parser.parse_args()
    where, started = settings(), time.monotonic()
    data, truth = keep_apart(sources.read("mnist", mnist=where.mnist, cache=where.downloads))

    def train(seed: int, epochs: int) -> Contestant:
        changes = {"seed": seed, "epochs": epochs, "batch_size": 128, "validation_fraction": None}
        return Contestant(COMPACT.model_copy(update=changes), data, truth)

    same = [train(seed, arguments.epochs) for seed in range(arguments.pairs + 1)]
    said = Counter(verdict(data, one, other).decision for one, other in zip(same[1:], same, strict=False))
    held = arguments.pairs - said["promote"]
    print(f"{arguments.pairs} pairs of seeds: {dict(said)}, held {held / arguments.pairs:.1%}", flush=True)

    weak = [train(100 + seed, arguments.weaker_epochs) for seed in range(10)]
    pairs = [(better, worse) for better in same for worse in weak if better.truth - worse.truth >= POINTS]
    said = Counter(verdict(data, better, worse).decision for better, worse in pairs)
    gains = [100 * (better.truth - worse.truth) for better, worse in pairs]
    print(
        f"{len(pairs)} pairs ahead by {min(gains):.2f} to {max(gains):.2f} points (median {np.median(gains):.2f}): "
        f"{dict(said)}, promoted {said['promote'] / len(pairs):.1%}"
    )
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
