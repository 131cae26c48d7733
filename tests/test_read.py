"""`POST /read` over HTTP: whole numbers, line by line, with the place of each digit."""

import io

import numpy as np
from PIL import Image
from serving import Service

from digits.images import Images
from digits.reference import Reference


def picture(*lines: Images, scale: int = 3) -> bytes:
    """A PNG of these digits, dark on white, side by side in lines below each other."""
    width = max(map(len, lines)) * 28
    page = np.vstack([np.pad(np.hstack(line), ((4, 4), (0, width - 28 * len(line)))) for line in lines])
    file = io.BytesIO()
    Image.fromarray(255 - np.kron(np.pad(page, 10), np.ones((scale, scale), np.uint8))).save(file, "PNG")
    return file.getvalue()


def sure(sample: Reference, *digits: int) -> Images:
    """For each of these digits, the image that is classified with most confidence."""
    right = sample.probabilities.argmax(axis=1) == sample.labels
    confidence = np.where(right, sample.probabilities.max(axis=1), 0)
    return np.stack([sample.images[np.argmax(confidence * (sample.labels == digit))] for digit in digits])


def test_a_number_is_read_with_the_place_of_each_digit(service: Service, sample: Reference) -> None:
    body = picture(sure(sample, 3, 1, 4), sure(sample, 2, 7))
    answer = service.client.post("/read", files={"file": body}).json()
    print(answer["text"], answer["lines"][0]["confidence"], [d["box"] for d in answer["lines"][0]["digits"]])
    assert answer["text"] == "314\n27"
