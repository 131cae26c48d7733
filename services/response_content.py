"""Builds the JSON content of responses from predictions, readings and reference images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import Images
from digits.reference import Reference
from digits.storage.predictions import Place
from models.conformal import UNCERTAIN_BELOW
from models.reading import Reading
from services.batcher import BatchResult

Content = dict[str, Any]


def samples(reference: Reference) -> list[Content]:
    """For each digit the image that is classified correctly with most confidence, then the ten with least confidence."""
    confidence = reference.probabilities.max(1)
    correct = reference.probabilities.argmax(1) == reference.labels
    # a poor version may classify no image of a digit correctly
    groups = [np.flatnonzero(correct & (reference.labels == digit)) for digit in range(10)]
    plain = [int(group[confidence[group].argmax()]) for group in groups if len(group)]
    hard = [index for index in np.argsort(confidence)[:10].tolist() if index not in plain]
    return [{"image": reference.images[index], "label": reference.labels[index]} for index in plain + hard]


def predictions(result: BatchResult, is_single: bool) -> Content:
    """One prediction, or the list of them."""
    found = [_prediction(result, index) for index in range(len(result.ids))]
    return found[0] if is_single else {"model_version": result.version, "predictions": found}


def _prediction(result: BatchResult, index: int) -> Content:
    return {
        "id": result.ids[index],
        **version_output(result.version, result.digits[index], result.probabilities[index]),
        "uncertain": result.uncertain[index],
        "is_digit": result.is_digit[index],
        "digit_score": result.digit_scores[index],
        "prediction_set": result.prediction_sets[index],
    }


def picture_prediction(result: BatchResult, images: Images) -> Content:
    """The prediction for the only image, and the image."""
    return {**_prediction(result, 0), "image": images[0]}


def version_output(version: str, digit: int, probabilities: NDArray[np.float32]) -> Content:
    """What a version said of one image."""
    probability = probabilities[digit]
    return {"digit": digit, "probability": probability, "probabilities": probabilities, "model_version": version}


def reading(lines: list[Reading], left_out: int, result: BatchResult, images: Images, places: list[Place]) -> Content:
    """The text of all lines; `result`, `images` and `places` have all digits in their order."""
    numbers = iter(range(len(images)))
    contents = []
    for line in lines:
        digits = []
        for read, index in zip(line.digits, numbers, strict=False):
            content = _prediction(result, index)
            # The likeliest text need not have the likeliest digit at each place.
            if read.digit != result.digits[index]:
                content |= {"digit": read.digit, "probability": content["probabilities"][read.digit], "uncertain": True}
            digits.append({**content, "image": images[index], "box": places[index][1:]})
        uncertain = not line.fits or line.confidence < UNCERTAIN_BELOW
        facts = {"text": line.text, "confidence": line.confidence, "uncertain": uncertain, "box": _hull(digits)}
        contents.append({**facts, "digits": digits})
    text = "\n".join(line.text for line in lines)
    return {"text": text, "lines": contents, "left_out": left_out, "model_version": result.version}


def _hull(digits: list[Content]) -> tuple[int, int, int, int]:
    """The box around all digits of a line."""
    left, top, width, height = zip(*(digit["box"] for digit in digits), strict=True)
    right, bottom = max(map(sum, zip(left, width, strict=True))), max(map(sum, zip(top, height, strict=True)))
    return min(left), min(top), right - min(left), bottom - min(top)
