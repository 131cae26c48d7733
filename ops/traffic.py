"""`digits traffic`: sends real test digits, plain or perturbed, to the endpoint; for demonstrations and tests."""

import io
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from digits.data import datasets, sources
from digits.data.perturbations import PERTURBATIONS
from digits.images import Images, Split
from digits.settings import Settings
from ops import endpoint

# The forms in which an image is sent.
Route = Literal["classify", "classify_file"]


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


def send(
    settings: Settings, test: Split, n: int, seed: int, label_share: float, route: Route = "classify", clients: int = 0
) -> str:
    """Send n random test images one after the other and feedback on a share of them; returns the counts in a sentence.

    Each comes from one of so many clients, drawn at random, or from nobody with 0 of them.
    """
    random = np.random.default_rng(seed)
    rows = random.choice(len(test), n, replace=n > len(test))
    right = labelled = 0
    with endpoint.open_client(settings) as client:
        for row in tqdm(rows, unit="request", disable=None):
            digit = int(test.labels[row])
            sender = {"X-Client-ID": f"client-{random.integers(clients) + 1}"} if clients else {}
            answer = _classify(client, route, test.images[row], sender)
            right += answer["digit"] == digit
            if random.random() < label_share:
                endpoint.call(client, "POST", "/feedback", json={"id": answer["id"], "digit": digit})
                labelled += 1
    return f"{n} answers, {right / n:.1%} right, {labelled} labelled"


def _classify(client: httpx.Client, route: Route, image: Images, headers: dict[str, str]) -> dict[str, Any]:
    """The answer for one image (28, 28), sent as numbers or as a PNG file of 28 x 28 pixels."""
    if route == "classify":
        return endpoint.call(client, "POST", "/classify", json={"images": image.tolist()}, headers=headers)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    picture = {"Content-Type": "image/png", **headers}
    return endpoint.call(client, "POST", "/classify_file", content=file.getvalue(), headers=picture)
