"""`POST /read` over HTTP: whole numbers, line by line, with the place of each digit."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


def test_a_digit_that_is_not_the_most_probable_one_is_uncertain(service: Service, sample: Reference) -> None:
    answer = service.client.post("/read", content=picture(sure(sample, 3)), params={"pattern": "[^3]"}).json()
    (digit,) = answer["lines"][0]["digits"]
    assert digit["digit"] == int(answer["text"]) != 3
    assert digit["probability"] == digit["probabilities"][digit["digit"]]
    assert digit["uncertain"]
    stored = service.client.get(f"/predictions/{digit['id']}").json()
    assert (stored["digit"], stored["probabilities"]) == (3, digit["probabilities"])


def counted(service: Service, metric: str) -> float:
    lines = service.client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric))


def test_previews_are_counted_nowhere(service: Service, sample: Reference) -> None:
    body, before = picture(sure(sample, 3, 1)), counted(service, "digits_answers_total")
    for options in ({"preview": "true"}, {"preview": "true", "length": "x"}):
        service.client.post("/read", content=body, params=options)
    assert counted(service, "digits_answers_total") == before
    service.client.post("/read", content=body)
    service.wait_for(lambda: counted(service, "digits_answers_total") == before + 2)


def test_one_digit_does_not_wait_for_pages(service: Service, sample: Reference) -> None:
    options: dict[str, Any] = {"content": page_of_500(sample), "params": {"preview": "true"}, "timeout": 120}
    with ThreadPoolExecutor() as pool:
        pages = [pool.submit(service.client.post, "/read", **options) for _ in range(3)]
        time.sleep(0.3)
        assert service.client.post("/classify_file", content=png(255 - sure(sample, 3)[0])).status_code == 200
        assert not any(page.done() for page in pages[1:])
    assert {page.result().status_code for page in pages} <= {200, 503}


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
