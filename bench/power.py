"""The drift detector's detection and false-alarm rates, on real digits that are neither in the training data nor in the reference.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.power

A champion is trained; half of the test images are its reference, and windows are drawn from the other half: 200 clean ones and 40
with each perturbation. The false-alarm rate must be at most 1 %: it is 0.1 % a look, so that at most one is expected in a month of
hourly looks. The strongest amount of each of `INJECTED`, an inversion and a digit twice as often must be detected in 95 % of the windows
from 500 predictions on.
"""

import argparse

import numpy as np

from bench import harness
from digits.reference import Reference
from models import recipes, training
from monitoring import detection_power

COUNTS = (100, 500, 2000)
REFERENCE = 5000


def main() -> None:
    """Print the detection rate of every perturbation at each window size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="compact", choices=recipes.RECIPES)
    recipe = recipes.find(parser.parse_args().recipe)
    dataset = harness.data()
    model = training.fit(recipe, dataset).model
    order = np.random.default_rng(0).permutation(len(dataset.test))
    known, held_out = np.split(order, [min(REFERENCE, len(order) // 2)])
    images, labels = dataset.test.images[known], dataset.test.labels[known]
    reference = Reference(images, labels, training.predict_proba(model, images))
    found = [
        detection_power.measure(
            reference,
            dataset.test.images[held_out],
            dataset.test.labels[held_out],
            lambda images: training.predict_proba(model, images),
            count,
        )
        for count in COUNTS
    ]
    print(f"{'windows of':<40}{''.join(f'{count:>8,}' for count in COUNTS)}")
    for rates in zip(*found, strict=True):
        print(f"{rates[0].description:<40}{''.join(f'{rate.rate:>8.1%}' for rate in rates)}")


if __name__ == "__main__":
    main()
