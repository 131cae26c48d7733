"""`digits traffic`: real test digits, plain or changed, sent to the endpoint; for demonstrations and tests."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np

from digits.datasets import Split
from digits.images import Images


@dataclass(frozen=True)
class Sent:
    """What came of it."""

    answers: int
    right: int
    labelled: int


def send(url: str, test: Split, n: int, seed: int, label_share: float) -> Iterator[Sent]:
    """Send n random test images one request at a time and give feedback on a share of them; the counts so far."""
    random = np.random.default_rng(seed)
    chosen = random.choice(len(test), n, replace=n > len(test))
    right = labelled = 0
    with httpx.Client(base_url=url, timeout=30) as client:
        for count, (image, label) in enumerate(zip(test.images[chosen], test.labels[chosen], strict=True), start=1):
            answer = _answer(client, image)
            right += answer["digit"] == label
            if random.random() < label_share:
                client.post("/feedback", json={"id": answer["id"], "digit": int(label)}).raise_for_status()
                labelled += 1
            yield Sent(count, right, labelled)


def _answer(client: httpx.Client, image: Images) -> dict[str, int]:
    response = client.post("/classify", json={"images": image.tolist()})
    if response.is_error:
        raise ConnectionError(f"the endpoint at {client.base_url} answered {response.status_code}: {response.text}")
    answer: dict[str, int] = response.json()
    return answer
