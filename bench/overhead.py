"""Time that the platform adds to a training: `digits train` with flow, evaluation, tracking and registry, against the bare training.

    digits up                                                            # in another terminal
    DIGITS_MNIST=/path/to/mnist.npz python -m bench.overhead

Both are timed as whole processes, in turn, with the same recipe on the same data; the bare one reads the data, trains and
tests. The figure is the median of the differences.
"""

import argparse
import statistics
import subprocess
import sys
import time

from bench.accuracy import data_for
from models import evaluation, recipes, training


def bare(name: str) -> None:
    """Read, train, test: what a script without a platform would do."""
    recipe = recipes.find(name)
    data = data_for(recipe)
    trained = training.fit(recipe, data)
    print(evaluation.accuracy(training.predict_proba(trained.model, data.test.images), data.test.labels))


def main() -> None:
    """Print a line per round and the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="compact")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true")
    arguments = parser.parse_args()
    if arguments.bare:
        bare(arguments.recipe)
        return
    alone = ["-m", "bench.overhead", "--bare", "--recipe", arguments.recipe]
    platform = ["-m", "ops", "train", "--recipe", arguments.recipe, "--data", "mnist"]
    added = []
    for _ in range(arguments.rounds):
        seconds, bare_seconds = _seconds(platform), _seconds(alone)
        added.append(seconds - bare_seconds)
        print(f"digits train {seconds:.1f} s, bare training {bare_seconds:.1f} s", flush=True)
    print(f"{arguments.recipe}: the platform adds {statistics.median(added):.1f} s (median of {len(added)})")


def _seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
