"""`digits traffic`: sends real test digits, plain or perturbed, to the endpoint; for demonstrations and tests."""

import io
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
import numpy as np
from PIL import Image
from sqlalchemy import Engine
from tqdm import tqdm

from digits.data import datasets, sources
from digits.data.perturbations import PERTURBATIONS
from digits.images import Images, Split
from digits.settings import Settings
from digits.storage import predictions
from digits.storage.labels import AUDITOR
from ops import endpoint

# The forms in which an image is sent.
Route = Literal["classify", "classify_file"]
LOG_TIMEOUT_SECONDS = 60


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


def classify_batch(client: httpx.Client, images: Images, client_id: str = "") -> dict[str, int]:
    """Send images (n, 28, 28) in one request, from this client where one is named; returns each answer's digit by its id, in order."""
    headers = {"X-Client-ID": client_id} if client_id else {}
    answer = endpoint.call(client, "POST", "/classify", json={"images": images.tolist()}, headers=headers)
    return {one["id"]: one["digit"] for one in answer["predictions"]}


def wait_until_logged(engine: Engine, since: datetime, count: int) -> None:
    """Wait until so many answers since then are in the database, into which the service writes in batches; raises TimeoutError."""
    deadline = time.monotonic() + LOG_TIMEOUT_SECONDS
    while (logged := sum(predictions.counts(engine, since, datetime.now(UTC)).values())) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {logged:,} of {count:,} answers are logged after {LOG_TIMEOUT_SECONDS} s")
        time.sleep(0.1)


def give_labels(client: httpx.Client, digits: Mapping[str, int]) -> None:
    """Send the true digits of answers, by their ids, as an auditor does."""
    for id, digit in digits.items():
        endpoint.call(client, "POST", "/feedback", json={"id": id, "digit": int(digit), "source": AUDITOR})
