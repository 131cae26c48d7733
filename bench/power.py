"""What the detector catches and how often it cries wolf, on real digits that nobody trained on and that are not in the reference.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.power

A champion is trained; half of the test images are its reference, and windows are drawn from the other half: 200 clean ones and 40
with each of the nine changes, which must not be called drift in more than 5 %, and must be caught in 95 % from 500 answers on.
"""

import argparse

import numpy as np

from bench import harness
from digits.reference import Reference
from models import recipes, training
from monitoring import detection_power

COUNTS = (100, 500, 2000)
SHOWN = {words.format(amounts[-1]) for _, amounts, words in detection_power.INJECTED.values()}
SHOWN |= {"", f"one digit {detection_power.MIX[-1]:g} times as often"}
REFERENCE = 5000


def main() -> None:
    """Print a line per change: the share of windows called drift at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="compact", choices=recipes.RECIPES)
    recipe = recipes.find(parser.parse_args().recipe)
    dataset = harness.data()
    model = training.fit(recipe, dataset).model
    order = np.random.default_rng(0).permutation(len(dataset.test))
    known, fresh = np.split(order, [min(REFERENCE, len(order) // 2)])
    images, labels = dataset.test.images[known], dataset.test.labels[known]
    reference = Reference(images, labels, training.forward(model, images))
    found = [
        detection_power.measure(
            reference,
            dataset.test.images[fresh],
            dataset.test.labels[fresh],
            lambda images: training.forward(model, images),
            count,
        )
        for count in COUNTS
    ]
    print(f"{'windows of':<34}{''.join(f'{count:>8,}' for count in COUNTS)}")
    for of_one in zip(*found, strict=True):
        if of_one[0].strength in SHOWN:
            name = "false alarms" if of_one[0].change == "none" else f"{of_one[0].change} {of_one[0].strength}".strip()
            print(f"{name:<34}{''.join(f'{one.share:>8.1%}' for one in of_one)}")


if __name__ == "__main__":
    main()
