"""A patch on the decisive stroke matters more than one on paper."""

import numpy as np
import pytest
from conftest import Files
from serving import Service

from digits.images import Images
from digits.reference import Reference
from models import onnx_model
from models.occlusion import occlusion_map


def seven_or_one(images: Images) -> np.ndarray:
    """A seven if there is a bar at the top, otherwise a one, whatever else is written."""
    bar = images[:, 4:6, 6:20].mean(axis=(1, 2)) / 255
    probabilities = np.zeros((len(images), 10), np.float32)
    probabilities[:, 7], probabilities[:, 1] = bar, 1 - bar
    return probabilities


def seven() -> Images:
    image = np.zeros((28, 28), np.uint8)
    image[4:6, 6:20] = image[6:24, 18:20] = 255
    return image


def test_a_patch_on_the_decisive_stroke_matters_more_than_one_on_paper() -> None:
    falls = occlusion_map(seven(), 7, 1.0, seven_or_one)
    assert falls.shape == (28, 28) and falls.dtype == np.float32
    assert falls[4:6, 6:18].min() > 0.1
    assert not falls[16:24].any()  # of paper, and of the stem, on which nothing depends
    other = occlusion_map(seven(), 1, 0.0, seven_or_one)
    np.testing.assert_allclose(other, -falls, atol=1e-6)  # for the other digit the bar speaks against it


def test_an_image_without_ink_is_explained_by_nothing() -> None:
    def unused(images: Images) -> np.ndarray:
        raise AssertionError("paper over paper changes nothing")

    assert not occlusion_map(np.zeros((28, 28), np.uint8), 3, 0.1, unused).any()


def test_all_pixels_lie_under_as_many_patches() -> None:
    ink = np.full((28, 28), 255, np.uint8)
    falls = occlusion_map(ink, 0, 1.0, lambda images: np.zeros((len(images), 10), np.float32))
    np.testing.assert_allclose(falls, 1, atol=1e-6)


def test_the_ink_of_a_real_digit_matters_more_than_the_paper(champion_files: Files, sample: Reference) -> None:
    model = onnx_model.load(champion_files["model.onnx"])
    doubtful = np.argsort(sample.probabilities.max(axis=1))[:20]
    inside, outside = [], []
    for image in sample.images[doubtful]:
        probabilities = model.predict_proba(image[None])[0]
        falls = occlusion_map(image, int(probabilities.argmax()), float(probabilities.max()), model.predict_proba)
        inside.append(falls[image > 128].mean())
        outside.append(falls[image == 0].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_over_http_an_answer_is_explained_and_nothing_logged(service: Service, sample: Reference) -> None:
    before = len(service.window())
    image = sample.images[0]
    answer = service.client.post("/explain", json={"image": image.tolist()}).json()
    plain = service.client.post("/classify", json={"images": image.tolist()}).json()
    service.client.get(f"/predictions/{plain['id']}")
    assert {name: answer[name] for name in ("digit", "model_version")} == {
        name: plain[name] for name in ("digit", "model_version")
    }
    assert answer["probability"] == pytest.approx(plain["probability"])
    falls = np.array(answer["falls"])
    assert falls.shape == (28, 28) and falls.max() > 0
    assert len(service.window()) == before + 1


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"image": [[300] * 28] * 28}, "row 0, column 0 is 300"),
        ({"image": [[[0] * 28] * 28] * 2}, "send one image"),
        ({"images": [[0] * 28] * 28}, 'no field "images"'),
        ({}, '"image" is missing'),
    ],
)
def test_over_http_what_is_no_image_is_refused(service: Service, body: object, sentence: str) -> None:
    response = service.client.post("/explain", json=body)
    assert response.status_code == 422 and sentence in response.json()["error"]
