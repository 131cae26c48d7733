"""`digits traffic`: real test digits, plain or changed, sent to the endpoint; for demonstrations and tests."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from digits.data import datasets, perturbations, sources
from digits.data.perturbations import Change
from digits.images import Split
from digits.settings import Settings
from ops import endpoint

CHANGES: dict[str, tuple[Change, float, float, float, str]] = {  # the usual amount, the least, the most, and of what
    "shift": (perturbations.shift, 2.0, -27.0, 27.0, "pixels"),
    "rotate": (perturbations.rotate, 15.0, -180.0, 180.0, "degrees"),
    "slant": (perturbations.slant, 15.0, -80.0, 80.0, "degrees"),
    "scale": (perturbations.scale, 0.8, 0.1, 10.0, "times the size"),
    "dim": (perturbations.dim, 0.6, 0.0, 10.0, "times the ink"),
    "thicken": (perturbations.thicken, 1.0, 0.0, 27.0, "pixels"),
    "thin": (perturbations.thin, 1.0, 0.0, 27.0, "pixels"),
    "noise": (perturbations.noise, 30.0, 0.0, 255.0, "grey levels"),
    "blur": (perturbations.blur, 1.0, 0.1, 27.0, "pixels"),
    "invert": (perturbations.invert, 1.0, 1.0, 1.0, ""),
}


@dataclass(frozen=True)
class Sent:
    """What came of it."""

    answers: int
    right: int
    labelled: int


def test_images(data: str | None, settings: Settings) -> Split:
    """Of a SOURCE, or of the current data set where none is named."""
    fingerprint = datasets.current(settings.datasets)
    if data is None and fingerprint:
        return datasets.load(settings.datasets, fingerprint).test
    return sources.read(data or "mnist", mnist=settings.mnist, cache=settings.downloads).test


def changed(test: Split, change: str, amount: float | None) -> Split:
    """The images after a change of this name; raises ValueError with the names there are, or with the amounts."""
    if change == "plain":
        return test
    if change not in CHANGES:
        raise ValueError(f"there is no change {change!r}; choose one of plain, {', '.join(CHANGES)}")
    apply, usual, least, most, unit = CHANGES[change]
    amount = usual if amount is None else amount
    if not least <= amount <= most:
        raise ValueError(f"--amount is {amount:g}; expected {least:g} to {most:g} {unit}".rstrip() + f" for {change!r}")
    return Split(apply(test.images, amount), test.labels)


def send(settings: Settings, test: Split, n: int, seed: int, label_share: float) -> Iterator[Sent]:
    """Send n random test images one request at a time and give feedback on a share of them; the counts so far."""
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
                        "the endpoint logs nothing now, so its answers cannot be labelled; see `digits status`"
                    )
                endpoint.post(client, "/feedback", json={"id": answer["id"], "digit": int(label)})
                labelled += 1
            yield Sent(count, right, labelled)
