"""The same inputs give the same weights, and prediction sets cover each digit as often as they say."""

import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bench.field.scenario import Finding, Scenario
from digits.data import datasets, sources
from digits.images import Split
from digits.settings import load_settings
from models import conformal, training
from models.recipes import COMPACT

THREADS = (1, 2, 8)
N_CALIBRATION = 12_000  # as many as `compact` holds out of MNIST
MAX_SET_SIZE = 1.5  # of `compact` on MNIST, on average; larger sets would be of no use

# Trains `classic` for one epoch on the given cores and prints the hashes of its inputs and its weights.
PROGRAM = """
import json, os, sys
cores = int(sys.argv[1])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from pathlib import Path
from digits.data import sources
from models import candidates, provenance, training
from models.recipes import RECIPES
recipe = RECIPES["classic"].recipe.model_copy(update={"epochs": 1})
dataset = sources.read("bundled", mnist=None, cache=Path("."))
weights = training.fit(recipe, candidates.split(dataset, recipe)).weights_hash
print(json.dumps([provenance.inputs_hash(dataset.fingerprint, recipe), weights]))
"""


def threads(repetitions: int) -> Finding:
    """The weights by the number of threads, which TensorFlow takes from the cores unless it is told."""
    runs = [_train({"TF_NUM_INTRAOP_THREADS": str(n), "TF_NUM_INTEROP_THREADS": str(n)}) for n in THREADS]
    by_cores = [_train({}, cores) for cores in (1, os.cpu_count() or 1)]
    weights = {hashes for _, hashes in runs}
    ambiguous = _ambiguous(runs + by_cores)
    # the cores are part of the inputs, so these would be allowed to differ
    n_by_cores = len({hashes for _, hashes in by_cores})
    return Finding(
        f"{len(weights)} different weights of the same recipe and data on {', '.join(map(str, THREADS))} threads",
        f"{n_by_cores} on 1 and {os.cpu_count()} cores without a setting; {ambiguous} inputs hashes have several weights",
        "",
        n_by_cores == 1 and ambiguous == 0 and len(weights) > 1,
    )


def _train(variables: dict[str, str], cores: int = 10_000) -> tuple[str, str]:
    """The hashes of inputs and weights of a training in a process of its own, on so many of the cores at most."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("TF_NUM_", "XLA_", "TF_XLA_"))}
    command = [sys.executable, "-c", PROGRAM, str(cores)]
    done = subprocess.run(command, env={**unset, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    inputs, weights = json.loads(done.stdout.splitlines()[-1])
    return inputs, weights


def _ambiguous(runs: list[tuple[str, str]]) -> int:
    """The number of inputs hashes with more than one weights hash."""
    return sum(len({weights for other, weights in runs if other == inputs}) > 1 for inputs in {run[0] for run in runs})


def coverage(repetitions: int) -> Finding:
    """The coverage of each digit over random divisions of held-out MNIST into calibration and test images."""
    held_out, probabilities = _held_out()
    naive, guarded, sizes, stated = [], [], [], set()
    for repetition in range(repetitions):
        order = np.random.default_rng(repetition).permutation(len(held_out))
        known, new = order[:N_CALIBRATION], order[N_CALIBRATION:]
        predictor = conformal.calibrate(probabilities[known], held_out.labels[known])
        stated.add(predictor.coverage)
        ratios = probabilities / probabilities.max(1, keepdims=True)
        threshold = _one_threshold(ratios[known, held_out.labels[known]], predictor.coverage)
        one_for_all = ratios[new] >= threshold
        by_digit, _ = predictor.predict(probabilities[new], held_out.images[new])
        naive.append(_by_digit(one_for_all, held_out.labels[new]))
        guarded.append(_by_digit(by_digit, held_out.labels[new]))
        sizes.append((one_for_all.sum(1).mean(), by_digit.sum(1).mean()))
    promise = max(stated)
    before, after = np.mean(sizes, axis=0)
    error = np.std(guarded, axis=0) / np.sqrt(repetitions)
    shortfall = promise - 3 * error - np.mean(guarded, axis=0)
    return Finding(
        f"{_lowest(np.array(naive))}, promised {promise:.1%}",
        f"{_lowest(np.array(guarded))}, promised {promise:.1%}",
        f"{after:.3f} digits in a set on average instead of {before:.3f}",
        bool((shortfall <= 0).all() and after < MAX_SET_SIZE),
    )


@cache
def _held_out() -> tuple[Split, NDArray[np.float32]]:
    """22,000 images of MNIST that a network was not trained on, and its probabilities (n, 10)."""
    settings = load_settings()
    dataset = sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)
    dataset = datasets.resplit(dataset, COMPACT.validation_fraction or 0.2, seed=0)
    model = training.fit(COMPACT.model_copy(update={"epochs": 8}), dataset).model
    held_out = datasets.join(dataset.validation, dataset.test)
    return held_out, training.predict_proba(model, held_out.images)


def _one_threshold(scores: NDArray[np.float32], level: float) -> float:
    """Split conformal without classes: the threshold that the true digit's ratio reaches with this coverage."""
    return float(np.sort(scores)[int((len(scores) + 1) * (1 - level) + 1e-9) - 1])


def _by_digit(sets: NDArray[np.bool_], labels: NDArray[np.uint8]) -> list[float]:
    """For each digit, the share of its images with the digit in the set."""
    return [float(sets[labels == digit, digit].mean()) for digit in range(10)]


def _lowest(coverages: NDArray[np.float64]) -> str:
    """The digit that is covered least often, from coverages (repetitions, 10), with the standard error of the mean."""
    means, errors = coverages.mean(axis=0), coverages.std(axis=0) / np.sqrt(len(coverages))
    digit = int(means.argmin())
    return f"least for {digit}s: {means[digit]:.2%} ± {errors[digit]:.2%}, over {len(coverages)} divisions"


SCENARIOS = (
    Scenario(12, "The same inputs give the same weights, whatever the number of cores", threads),
    Scenario(14, "Prediction sets cover each digit as often as they say", coverage),
)
