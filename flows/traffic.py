"""`digits traffic`: real test digits, plain or changed, sent to the endpoint; for demonstrations and tests."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np

from digits import changes, datasets, sources
from digits.changes import Change
from digits.datasets import Split
from digits.images import Images
from digits.settings import Settings

CHANGES: dict[str, tuple[Change, float]] = {  # with the amount that is taken when none is given
    "shift": (changes.shift, 2.0),
    "rotate": (changes.rotate, 15.0),
    "slant": (changes.slant, 15.0),
    "scale": (changes.scale, 0.8),
    "dim": (changes.dim, 0.6),
    "thicken": (changes.thicken, 1.0),
    "thin": (changes.thin, 1.0),
    "noise": (changes.noise, 30.0),
    "blur": (changes.blur, 1.0),
    "invert": (changes.invert, 1.0),
}


@dataclass(frozen=True)
class Sent:
    """What came of it."""

    answers: int
    right: int
    labelled: int


def test_images(data: str | None, where: Settings) -> Split:
    """Of a SOURCE, or of the current data set where none is named."""
    fingerprint = datasets.current(where.datasets)
    if data is None and fingerprint:
        return datasets.load(where.datasets, fingerprint).test
    return sources.read(data or "mnist", mnist=where.mnist, cache=where.downloads).test


def changed(test: Split, change: str, amount: float | None) -> Split:
    """The images after a change of this name; raises ValueError with the names there are."""
    if change == "plain":
        return test
    if change not in CHANGES:
        raise ValueError(f"there is no change {change!r}; choose one of plain, {', '.join(CHANGES)}")
    apply, usual = CHANGES[change]
    return Split(apply(test.images, usual if amount is None else amount), test.labels)


def send(where: Settings, test: Split, n: int, seed: int, label_share: float) -> Iterator[Sent]:
    """Send n random test images one request at a time and give feedback on a share of them; the counts so far."""
    random = np.random.default_rng(seed)
    chosen = random.choice(len(test), n, replace=n > len(test))
    right = labelled = 0
    with httpx.Client(base_url=where.service_url, headers=where.credentials, timeout=30) as client:
        for count, (image, label) in enumerate(zip(test.images[chosen], test.labels[chosen], strict=True), start=1):
            answer = _answer(client, image)
            right += answer["digit"] == label
            if random.random() < label_share:
                client.post("/feedback", json={"id": answer["id"], "digit": int(label)}).raise_for_status()
                labelled += 1
            yield Sent(count, right, labelled)


def _answer(client: httpx.Client, image: Images) -> dict[str, int]:
    try:
        response = client.post("/classify", json={"images": image.tolist()})
    except httpx.TransportError as error:
        raise ConnectionError(
            f"the endpoint does not answer at {client.base_url}; start it with `digits up`"
        ) from error
    if response.is_error:
        raise ConnectionError(f"the endpoint at {client.base_url} answered {response.status_code}: {response.text}")
    answer: dict[str, int] = response.json()
    return answer
