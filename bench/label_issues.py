"""How well the check of labels finds wrong ones: those that are known in MNIST's test part, and those that were made.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.label_issues

The known ones are the 15 labels of MNIST's test part to which most of five people did not agree (Northcutt, Athalye and Mueller 2021,
"Pervasive label errors in test sets destabilize machine learning benchmarks", https://arxiv.org/abs/2103.14749; the answers are in
`mturk/mnist_mturk.json` of https://github.com/cleanlab/label-errors). For the others 1 % of the training labels are changed at random.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench import harness
from digits.data.datasets import Dataset
from digits.images import Split
from models import label_issues

# Index among MNIST's 10,000 test images: the label there, and what most people saw instead, None where they did not agree on one.
KNOWN: dict[int, tuple[int, int | None]] = {
    **{947: (8, 9), 1621: (0, 6), 1901: (9, 4), 2130: (4, None), 2462: (2, 0), 2597: (5, 3), 2654: (6, None)},
    **{3520: (6, None), 3558: (5, 0), 5937: (5, 3), 6651: (0, 6), 6783: (1, 6), 8527: (4, None), 9679: (6, None)},
    9729: (5, 6),
}
ASKED, FLIPPED = 100, 0.01


def main() -> None:
    """Print precision and recall of both checks."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    data = harness.data()
    is_mnist = len(data.test) == 10_000 and all(data.test.labels[row] == label for row, (label, _) in KNOWN.items())
    if is_mnist:
        check_known(data)
    check_flipped(data, seed=0)


def check_known(data: Dataset) -> None:
    """Compare the suspects of the test part, by a network that learned from the training part, with the known ones."""
    probabilities = label_issues.predictions_on_test(data, seed=0)
    found = label_issues.suspected(data.test.labels, probabilities).tolist()
    hits = [row for row in found if row in KNOWN]
    of_label = probabilities[np.arange(len(data.test)), data.test.labels]
    asked = set(np.argsort(of_label)[:ASKED].tolist())
    share = f"recall {len(hits) / len(KNOWN):.0%}, precision {len(hits) / max(1, len(found)):.0%}"
    print(f"MNIST's test part: {len(found)} of {len(data.test):,} labels suspected, {len(hits)} of the {len(KNOWN)} known errors among them: {share}")  # fmt: skip
    print(
        f"the {ASKED} least probable labels, as many as people were asked about, have {len(asked & KNOWN.keys())} of the {len(KNOWN)}"
    )
    seen = [row for row in hits if probabilities[row].argmax() == KNOWN[row][1]]
    print(f"the prediction is what most people saw in {len(seen)} of the {len(hits)}")


def check_flipped(data: Dataset, seed: int) -> None:
    """Change some labels of the training part, and count which of them are suspected."""
    random, labels = np.random.default_rng(seed), data.train.labels.copy()
    rows = random.choice(len(labels), round(FLIPPED * len(labels)), replace=False)
    labels[rows] = (labels[rows] + random.integers(1, 10, len(rows))) % 10
    flipped = np.zeros(len(labels) + len(data.validation), np.bool_)
    flipped[rows] = True
    before = time.perf_counter()
    found = label_issues.find(replace(data, train=Split(data.train.images, labels)))
    seconds = time.perf_counter() - before
    if found is None:
        raise SystemExit("the labels were not checked; set DIGITS_MNIST")
    suspects = positions(found, len(data.train))
    hits = int(flipped[suspects].sum())
    print(
        f"{len(rows)} of {len(flipped):,} training labels changed at random: {len(found)} suspected in {seconds:.0f} s"
    )
    print(
        f"precision {hits / len(suspects):.1%}, recall {hits / len(rows):.1%}; out-of-sample accuracy {found.accuracy:.2%}"
    )
    clean = label_issues.find(data)
    if clean is not None:
        print(f"with the labels as they are: {len(clean)} of {clean.checked:,} suspected")


def positions(found: label_issues.LabelIssues, train: int) -> NDArray[np.int64]:
    """Rows in train and validation together."""
    return np.array([row + (part == "validation") * train for part, row in found.places], np.int64)


if __name__ == "__main__":
    main()
