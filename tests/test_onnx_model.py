"""A model answers ten probabilities for each image within its time, or says that it failed, whatever was registered."""

import time
from collections.abc import Callable
from threading import Thread

import hostile
import numpy as np
import pytest
from conftest import Files
from onnx import TensorProto

from digits import reference
from models import onnx_model
from models.onnx_model import InferenceFailed, OnnxModel

BLANK = np.zeros((3, 28, 28), np.uint8)
MARKED = BLANK.copy()
MARKED[1, 0, 0] = 255


def test_a_run_that_does_not_end_is_ended(champion_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that run at the same time, and the next one of the same session, are answered."""
    monkeypatch.setattr(onnx_model, "RUN_LIMIT_SECONDS", 0.5)
    model = onnx_model.load(hostile.endless_for_some(champion_files)["model.onnx"])
    expected = onnx_model.load(champion_files["model.onnx"]).predict_proba(BLANK)
    answers: list[np.ndarray] = []
    other = Thread(target=lambda: answers.extend(model.predict_proba(BLANK) for _ in range(200)))
    started = time.monotonic()
    other.start()
    with pytest.raises(InferenceFailed, match=r"the run did not end within 0\.56 s; look for a loop in model\.onnx"):
        model.predict_proba(MARKED)
    assert time.monotonic() - started < 10
    other.join()
    assert len(answers) == 200 and all(np.array_equal(answer, expected) for answer in answers)
    assert np.array_equal(model.predict_proba(BLANK), expected)


@pytest.mark.parametrize(
    ("make", "images", "reason"),
    [
        (
            lambda honest: hostile.of_type(TensorProto.DOUBLE, honest),
            BLANK,
            r"expected float32 .* got float64 \(3, 10\)",
        ),
        (lambda honest: hostile.of_type(TensorProto.FLOAT16, honest), BLANK, r"expected float32 .* got float16"),
        (hostile.nan_for_some, MARKED, "sum to 1 for each image"),
        (hostile.negative_for_some, MARKED, "of at least 0 that sum to 1 for each image"),
        (hostile.of_scores, BLANK, "sum to 1 for each image"),
    ],
    ids=["float64", "float16", "NaN", "negative", "scores"],
)
def test_what_is_no_probability_is_no_answer(
    make: Callable[[Files], Files], images: np.ndarray, reason: str, champion_files: Files
) -> None:
    model = onnx_model.load(make(champion_files)["model.onnx"])
    with pytest.raises(InferenceFailed, match=reason):
        model.predict_proba(images)


@pytest.mark.parametrize("make", [hostile.nan_for_some, hostile.negative_for_some, hostile.endless_for_some])
def test_the_hostile_ones_answer_the_other_images_as_registered(
    make: Callable[[Files], Files], champion_files: Files
) -> None:
    model: OnnxModel = onnx_model.load(make(champion_files)["model.onnx"])
    sample = reference.from_bytes(champion_files["reference.npz"])
    assert np.allclose(model.predict_proba(sample.images), sample.probabilities, atol=1e-6)
