"""`digits traffic`: sends real test digits, plain or perturbed, to the endpoint; for demonstrations and tests."""

import numpy as np
from tqdm import tqdm

from digits.data import datasets, sources
from digits.data.perturbations import PERTURBATIONS
from digits.images import Split
from digits.settings import Settings
from ops import endpoint


def test_images(data: str | None, settings: Settings) -> Split:
    """The test images of a SOURCE, or of the current data set where none is named."""
    fingerprint = datasets.current(settings.datasets)
    if data is None and fingerprint:
        return datasets.load(settings.datasets, fingerprint).test
    return sources.read(data or "mnist", mnist=settings.mnist, cache=settings.downloads).test


def perturb(test: Split, name: str, amount: float | None) -> Split:
    """The images after this perturbation, or as they are if it is `plain`; raises ValueError with the valid names or amounts."""
    if name == "plain":
        return test
    if name not in PERTURBATIONS:
        raise ValueError(f"there is no perturbation {name!r}; choose one of plain, {', '.join(PERTURBATIONS)}")
    perturbation = PERTURBATIONS[name]
    amount = perturbation.default if amount is None else amount
    low, high = perturbation.range
    if not low <= amount <= high:
        expected = f"{low:g} to {high:g} {perturbation.unit}".rstrip()
        raise ValueError(f"--amount is {amount:g}; expected {expected} for {name!r}")
    return Split(perturbation.apply(test.images, amount), test.labels)


def send(settings: Settings, test: Split, n: int, seed: int, label_share: float) -> str:
    """Send n random test images one after the other and feedback on a share of them; returns the counts in a sentence."""
    random = np.random.default_rng(seed)
    rows = random.choice(len(test), n, replace=n > len(test))
    right = labelled = 0
    with endpoint.open_client(settings) as client:
        for row in tqdm(rows, unit="request", disable=None):
            digit = int(test.labels[row])
            answer = endpoint.call(client, "POST", "/classify", json={"images": test.images[row].tolist()})
            right += answer["digit"] == digit
            if random.random() < label_share:
                endpoint.call(client, "POST", "/feedback", json={"id": answer["id"], "digit": digit})
                labelled += 1
    return f"{n} answers, {right / n:.1%} right, {labelled} labelled"
