"""`digits traffic`: sends real test digits, plain or perturbed, to the endpoint; for demonstrations and tests."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from digits.data import datasets, sources
from digits.data.perturbations import PERTURBATIONS
from digits.images import Split
from digits.settings import Settings
from ops import endpoint


@dataclass(frozen=True)
class Sent:
    """The requests so far."""

    answers: int
    right: int
    labelled: int


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


def send(settings: Settings, test: Split, n: int, seed: int, label_share: float) -> Iterator[Sent]:
    """Send n random test images one after the other and feedback on a share of them; yields the counts after each."""
    random = np.random.default_rng(seed)
    chosen = random.choice(len(test), n, replace=n > len(test))
    right = labelled = 0
    with endpoint.open_client(settings) as client:
        for count, (image, label) in enumerate(zip(test.images[chosen], test.labels[chosen], strict=True), start=1):
            answer = endpoint.post(client, "/classify", json={"images": image.tolist()})
            right += answer["digit"] == label
            if random.random() < label_share:
                if answer["id"] is None:
                    raise ValueError(
                        "the endpoint logs no predictions now, so none can be labelled; see `digits status`"
                    )
                endpoint.post(client, "/feedback", json={"id": answer["id"], "digit": int(label)})
                labelled += 1
            yield Sent(count, right, labelled)
