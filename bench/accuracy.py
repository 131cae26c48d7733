"""How accurate recipes are on MNIST's 10,000 test images, over seeds, and how long they train.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.accuracy kaggle-sgd classic adam compact sigmoid
    DIGITS_MNIST=/path/to/mnist.npz python -m bench.accuracy augmented --seeds 3 --ensemble

With `--ensemble` the networks of all seeds are also averaged into one, as the recipe `ensemble` does.
`kaggle-sgd` is trained and tested on 42,000 of the images, a tenth of them held out, as Kaggle's `train.csv` would be.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
from scipy.stats import t

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from digits.images import Split
from digits.settings import load_settings
from models import evaluation, recipes, training
from models.recipes import RECIPES
from models.training import Recipe

KAGGLE_ROWS = 42_000


def data_for(recipe: Recipe) -> Dataset:
    """MNIST as the recipe splits it."""
    settings = load_settings()
    data = sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)
    if recipe.name == "kaggle-sgd":
        pool = datasets.join(data.train, data.validation)
        chosen = np.random.default_rng(0).permutation(len(pool))[:KAGGLE_ROWS]
        held_out, rest = np.split(chosen, [KAGGLE_ROWS // 10])
        test, train = (Split(pool.images[rows], pool.labels[rows]) for rows in (held_out, rest))
        data = replace(data, train=train, test=test)
    if recipe.validation_fraction is None:
        return data
    return datasets.resplit(data, recipe.validation_fraction, recipe.seed)


def mean_interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean (Student's t)."""
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def over_seeds(accuracies: list[float]) -> str:
    """Mean, 95 % interval of the mean and standard deviation."""
    mean, spread, (low, high) = statistics.mean(accuracies), statistics.stdev(accuracies), mean_interval(accuracies)
    return f"mean {mean:.2%} [{low:.2%}, {high:.2%}] over {len(accuracies)} seeds, deviation {spread:.2%}"


def measure(recipe: Recipe, seeds: int, ensemble: bool) -> None:
    """Print a line per seed, then the mean and the spread."""
    accuracies, logits = [], []
    for seed in range(seeds):
        seeded = recipe.model_copy(update={"seed": seed})
        data = data_for(seeded)
        started = time.perf_counter()
        trained = training.fit(seeded, data)
        seconds = time.perf_counter() - started
        probabilities = training.predict_proba(trained.model, data.test.images)
        logits.append(np.log(np.clip(probabilities, 1e-30, 1)) * trained.temperature)
        accuracy = evaluation.accuracy(probabilities, data.test.labels)
        accuracies.append(accuracy.value)
        print(f"{recipe.name} seed {seed}: {accuracy} of {len(data.test):,} in {seconds:.0f} s", flush=True)
    if seeds > 1:
        print(f"{recipe.name}: {over_seeds(accuracies)}")
    if ensemble:
        print(f"ensemble of {len(logits)}: {evaluation.accuracy(np.mean(logits, axis=0), data.test.labels)}")


def main() -> None:
    """Measure one recipe after the other, and say how long all of it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ensemble", action="store_true")
    arguments = parser.parse_args()
    started = time.perf_counter()
    for name in arguments.recipes:
        measure(recipes.find(name), arguments.seeds, arguments.ensemble)
    print(f"trained and tested in {time.perf_counter() - started:.0f} s together")


if __name__ == "__main__":
    main()
