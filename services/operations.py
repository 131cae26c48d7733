"""What each endpoint does with parsed input: the HTTP routes and the declared BentoML methods share these functions.

They return the content of the response and raise BentoML's exceptions, which carry a status: UnprocessableEntity (422) for invalid
input, NotFound (404), and ServiceUnavailable (503) without a champion or database.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from bentoml.exceptions import NotFound, ServiceUnavailable, UnprocessableEntity

from digits import images as pixels
from digits.data import rectification
from digits.images import PIXELS, SIZE, Images
from digits.storage.predictions import UnknownPrediction
from services.batcher import BatchResult
from services.prediction_log import LogUnavailable
from services.serving_context import ServingContext

Content = dict[str, Any]
T = TypeVar("T")

# The prediction set of each of the 1,024 combinations of ten digits, by its bits.
_DIGIT_BITS = 1 << np.arange(10)
_SETS = [[digit for digit in range(10) if bits >> digit & 1] for bits in range(1024)]


def read_images(context: ServingContext, value: Any) -> tuple[Images, bool]:
    """The images (n, 28, 28) in nested lists, and whether the lists are one image rather than a list of images."""
    return _call(pixels.from_json, value, context.settings.batch_limit), pixels.is_single(value)


def classify(context: ServingContext, value: Any) -> Content:
    """Predictions for one image or a list of images, as nested lists."""
    images, is_single = read_images(context, value)
    return classification(context.predict(images, "/classify"), is_single)


def classification(result: BatchResult, is_single: bool) -> Content:
    """One prediction, or the list of them."""
    predictions = [_prediction(result, index) for index in range(len(result.ids))]
    return predictions[0] if is_single else {"model_version": result.version, "predictions": predictions}


def _prediction(result: BatchResult, index: int) -> Content:
    digit = result.digits[index]
    return {
        "id": result.ids[index],
        "digit": digit,
        "probability": result.probabilities[index, digit],
        "probabilities": result.probabilities[index],
        "uncertain": result.uncertain[index],
        "prediction_set": np.flatnonzero(result.sets[index]),
        "model_version": result.version,
    }


def classify_file(context: ServingContext, picture: bytes, preview: bool) -> Content:
    """The prediction for a picture file and the 28 x 28 image made of it; a preview is not logged."""
    image = _call(rectification.decode, picture, context.settings.picture_limit_pixels)
    result = context.predict(image[None], "/classify_file", sample_rate=0.0 if preview else 1.0)
    return {**_prediction(result, 0), "image": image}


def classify_bulk(context: ServingContext, body: bytes) -> Content:
    """Predictions for raw uint8 pixels, 784 bytes for each image."""
    if not body or len(body) % PIXELS:
        raise UnprocessableEntity(f"the body has {len(body):,} bytes; expected {PIXELS} for each image")
    images = np.frombuffer(body, np.uint8).reshape(-1, SIZE, SIZE)
    result = context.predict(images, "/classify_bulk", context.settings.bulk_log_sample_rate)
    return {
        "model_version": result.version,
        "digits": result.digits,
        "probabilities": result.probabilities.max(1),
        "uncertain": result.uncertain,
        "prediction_sets": [_SETS[bits] for bits in (result.sets @ _DIGIT_BITS).tolist()],
        "ids": result.ids,
    }


def feedback(context: ServingContext, id: Any, digit: Any, source: Any) -> Content:
    """Record the true digit of an earlier prediction; the most recent label wins."""
    if not isinstance(id, str):
        raise UnprocessableEntity(f"id is {pixels.quote(id)}; expected the id of a prediction")
    if not isinstance(digit, int) or isinstance(digit, bool) or not 0 <= digit <= 9:
        raise UnprocessableEntity(f"digit is {pixels.quote(digit)}; expected a whole number from 0 to 9")
    if not isinstance(source, str) or not 0 < len(source) <= 64 or not source.isprintable():
        raise UnprocessableEntity(f"source is {pixels.quote(source)}; expected a name of 1 to 64 printable characters")
    _call(context.log.label, id, digit, source)
    return {"id": id, "digit": digit, "source": source}


def stored_prediction(context: ServingContext, id: str) -> Content:
    """A prediction from the log."""
    found = _call(context.log.find, id)
    probabilities = np.frombuffer(found.probabilities, np.float32)
    return {
        "id": found.id,
        "digit": found.digit,
        "probability": probabilities[found.digit],
        "probabilities": probabilities,
        "model_version": found.version,
        "at": found.at,
        "route": found.route,
        "label": None if found.label < 0 else found.label,
        "image": np.frombuffer(found.image, np.uint8).reshape(SIZE, SIZE),
    }


def _call(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result; its error as the one with a status."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise UnprocessableEntity(str(error)) from error
    except UnknownPrediction as error:
        raise NotFound(str(error)) from error
    except LogUnavailable as error:
        raise ServiceUnavailable(str(error)) from error
