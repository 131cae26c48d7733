"""How fast a network reaches 99 % of MNIST's test images: the time to train it, on the processor alone.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.speedrun

The epochs are fixed beforehand, so that the test images choose nothing: the mean accuracy over the seeds must be at least 99 %. The time
begins with the images in memory and ends with the last step; compilation counts, imports do not.
"""

import argparse
import statistics
import time

from bench import harness
from bench.accuracy import mean_interval, over_seeds
from digits.data import datasets
from models import label_issues, training
from models.training import Network

TARGET = 0.99
VALIDATION = 0.005  # of the training images, which the loop of training wants
RECIPE = label_issues.RECIPE.model_copy(update={"name": "speedrun"})  # also what the check of labels trains


def main() -> None:
    """Train with every seed; end with an error when the mean misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    data = datasets.resplit(harness.data(), VALIDATION, seed=0)
    training.build(RECIPE)  # imports Keras
    seconds, accuracies = [], []
    for seed in range(seeds):
        started = time.perf_counter()
        network = Network(RECIPE.model_copy(update={"seed": seed}), data)
        for _ in network.epochs():
            pass
        seconds.append(time.perf_counter() - started)
        right = training.forward(network.model, data.test.images).argmax(axis=1) == data.test.labels
        accuracies.append(float(right.mean()))
        print(f"seed {seed}: {accuracies[-1]:.2%} after {seconds[-1]:.1f} s", flush=True)
    mean, (low, high) = statistics.mean(seconds), mean_interval(seconds)
    print(
        f"{len(data.train):,} images, {RECIPE.epochs} epoch(s): {mean:.1f} s [{low:.1f}, {high:.1f}] to {over_seeds(accuracies)}"
    )
    if statistics.mean(accuracies) < TARGET:
        raise SystemExit(f"the mean accuracy is below {TARGET:.0%}; train longer")


if __name__ == "__main__":
    main()
