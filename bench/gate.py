"""The gate on trainings whose truth is known: another seed of the same recipe must be held, a real improvement promoted.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.gate
    DIGITS_MNIST=/path/to/mnist.npz python -m bench.gate --recipe augmented --epochs 8 --validation 0.2 --pairs 20 --weaker 8 --fewest 20000

The second command compares models near 99 %, where half a point is half of all errors.

Pairs of seeds train on the same images, as many as the recipe gives to training. The improvement is the one that retraining should
bring: the same recipe with more images, so many more that the better network is ahead by at least half a point on the validation
images. These give the true difference: no network trains on them, no recipe stops early by them, and the gate does not see them.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from digits.images import Images, Labels, Split
from digits.settings import load_settings
from models import evaluation, gate, recipes, significance, training
from models.training import Recipe

# Percentage points by which the candidate is truly better.
BINS = ((0.25, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, 100.0))


class JudgedModel:
    """One trained model and its predictions."""

    def __init__(self, recipe: Recipe, data: Dataset) -> None:
        model = training.fit(recipe, data).model
        suite = evaluation.corruptions(data.test.images)
        self.digits, answers = self._answers(model, data.test.images), self._answers(model, data.validation.images)
        self.truth = 100 * float((answers == data.validation.labels).mean())
        self.corrupted = {name: self._answers(model, images) for name, images in suite.items()}

    def _answers(self, model: Any, images: Images) -> Labels:
        return training.predict_proba(model, images).argmax(axis=1).astype(np.uint8)


def verdict(data: Dataset, candidate: JudgedModel, champion: JudgedModel) -> gate.GateVerdict:
    """As the first retraining judges without labelled traffic, with the usual policy."""
    labels, weight = data.test.labels, 1 / (1 + len(evaluation.CORRUPTIONS))
    samples = [gate.EvaluationSample("anchor", labels, candidate.digits, champion.digits)]
    corrupted = [
        gate.CorruptedSample(gate.EvaluationSample(name, labels, answers, champion.corrupted[name]), weight)
        for name, answers in candidate.corrupted.items()
    ]
    policy, facts = gate.GatePolicy(), gate.ModelFacts(size_bytes=500_000, milliseconds=0.1)
    level = significance.level([], policy.significance)
    return gate.judge(samples, facts, facts, policy, level, corrupted)


def report(what: str, data: Dataset, pairs: Sequence[tuple[JudgedModel, JudgedModel]]) -> None:
    """Print the verdicts on candidate and champion, and how much better in truth those are that were promoted."""
    decisions = [verdict(data, *pair).decision for pair in pairs]
    ahead = [
        candidate.truth - champion.truth
        for (candidate, champion), decision in zip(pairs, decisions, strict=True)
        if decision == "promote"
    ]
    line = f"{len(pairs)} {what}: {dict(Counter(decisions))}, promoted {len(ahead) / len(pairs):.1%}"
    if ahead:
        line += (
            f", better in truth {np.mean(np.array(ahead) > 0):.1%} of those, by {np.mean(ahead):.2f} points in the mean"
        )
    print(line, flush=True)


def main() -> None:
    """Print how often each kind of pair is promoted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    without_early_stopping = [name for name, preset in recipes.RECIPES.items() if preset.recipe.patience is None]
    parser.add_argument("--recipe", default="compact", choices=without_early_stopping)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's own")
    parser.add_argument(
        "--validation",
        type=float,
        help="share of the images that measure the true difference, instead of the recipe's own",
    )
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--weaker", type=int, default=12, help="trainings on fewer images")
    parser.add_argument("--fewest", type=int, default=14_000, help="images that the weakest of them learns from")
    arguments = parser.parse_args()
    settings, started = load_settings(), time.monotonic()
    own = {"epochs": arguments.epochs, "validation_fraction": arguments.validation}
    changed = {name: value for name, value in own.items() if value is not None}
    recipe = recipes.find(arguments.recipe).model_copy(update=changed)
    data = sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)
    if recipe.validation_fraction is not None:
        data = datasets.resplit(data, recipe.validation_fraction, recipe.seed)

    def train(seed: int, images: int) -> JudgedModel:
        some = Split(data.train.images[:images], data.train.labels[:images])
        part = Dataset(some, data.validation, data.test, data.source)
        return JudgedModel(recipe.model_copy(update={"seed": seed}), part)

    same = [train(seed, len(data.train)) for seed in range(arguments.pairs + 1)]
    right = [one.truth for one in same]
    print(
        f"{len(same)} seeds of {recipe.name} on {len(data.train):,} images: {np.mean(right):.2f} % of {len(data.validation):,}, "
        f"deviation {np.std(right, ddof=1):.2f}"
    )
    report("pairs of seeds", data, list(pairwise(same[::-1])))
    report("pairs, each seed against each", data, list(permutations(same, 2)))

    counts = np.linspace(arguments.fewest, len(data.train), arguments.weaker + 1)[:-1].astype(int)
    weak = [train(100 + index, count) for index, count in enumerate(counts)]
    pairs = [(better, worse) for better in same for worse in weak]
    for low, high in BINS:
        chosen = [pair for pair in pairs if low <= pair[0].truth - pair[1].truth < high]
        if chosen:
            report(f"pairs ahead by {low} to {high} points", data, chosen)
    print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
