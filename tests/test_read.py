"""`POST /read` over HTTP: whole numbers, line by line, with the place of each digit."""

import io
import time

import numpy as np
import pytest
from PIL import Image
from serving import Service

from digits.images import Images
from digits.reference import Reference


def picture(*lines: Images, scale: int = 3) -> bytes:
    """A PNG of these digits, dark on white, side by side in lines below each other."""
    width = max(map(len, lines)) * 28
    page = np.vstack([np.pad(np.hstack(list(line)), ((4, 4), (0, width - 28 * len(line)))) for line in lines])
    return png(255 - np.kron(np.pad(page, 10), np.ones((scale, scale), np.uint8)))


def png(grey: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def sure(sample: Reference, *digits: int) -> Images:
    """For each of these digits, the image that is classified with most confidence."""
    right = sample.probabilities.argmax(axis=1) == sample.labels
    confidence = np.where(right, sample.probabilities.max(axis=1), 0)
    return np.stack([sample.images[np.argmax(confidence * (sample.labels == digit))] for digit in digits])


def test_a_number_is_read_with_the_place_of_each_digit(service: Service, sample: Reference) -> None:
    body = picture(sure(sample, 3, 1, 4), sure(sample, 2, 7))
    answer = service.client.post("/read", files={"file": body}).json()
    assert answer["text"] == "314\n27"


def empty(height: int, width: int) -> Images:
    return np.zeros((height, width), np.uint8)


def texture() -> bytes:
    page = empty(4000, 6000)
    page[::40, ::40] = 1
    return png(255 - 255 * np.kron(page[::8, ::8], np.ones((8, 8), np.uint8)))


def one_on_24_megapixels(sample: Reference) -> bytes:
    page = empty(4000, 6000)
    page[1000:1280, 2000:2280] = np.kron(sure(sample, 3)[0], np.ones((10, 10), np.uint8))
    return png(255 - page)


def page_of_500(sample: Reference) -> bytes:
    return picture(*[np.tile(sure(sample, 3, 1), (10, 1, 1))] * 25, scale=1)


def test_large_pictures_are_read_in_bounded_time(service: Service, sample: Reference) -> None:
    for body, n_digits in ((one_on_24_megapixels(sample), 1), (page_of_500(sample), 500)):
        began = time.monotonic()
        answer = service.client.post("/read", files={"file": body}, params={"preview": "true"}, timeout=120).json()
        assert time.monotonic() - began < 100  # a few seconds on an idle machine
        assert abs(sum(len(line["digits"]) for line in answer["lines"]) - n_digits) <= 0.02 * n_digits


@pytest.mark.parametrize(
    ("page", "sentence"),
    [(png(empty(300, 300)), "blank"), (texture(), "pieces of ink, more than the 1,000")],
    ids=["blank", "texture"],
)
def test_a_picture_without_digits_gets_a_sentence(page: bytes, sentence: str, service: Service) -> None:
    response = service.client.post("/read", files={"file": page}, timeout=60)
    assert response.status_code == 422
    assert sentence in response.json()["error"]
