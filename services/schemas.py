"""The pydantic models of the HTTP API, from which BentoML makes its clients and `/schema.json`, and openapi.py the OpenAPI document."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from bentoml.validators import ContentType
from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter, WithJsonSchema

from digits.images import MAX_IMAGES, SIZE
from digits.storage.label_queue import MAX_LENGTH, Queue

Row = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=SIZE, max_length=SIZE)]
PIXEL_ROWS = f"{SIZE} rows of {SIZE} whole numbers, 0 = paper, 255 = ink."
Image = Annotated[list[Row], Field(min_length=SIZE, max_length=SIZE, description=PIXEL_ROWS)]
Digit = Annotated[int, Field(ge=0, le=9)]
TrueDigit = Annotated[Digit, Field(description="True digit.")]
Probability = Annotated[float, Field(ge=0, le=1.0001)]
COVERAGE = "Digits that include the true one with the coverage at /about, which holds for each digit on images like the validation images."
PredictionSet = Annotated[list[Digit], Field(min_length=1, max_length=10, description=COVERAGE)]
UNCERTAIN = "Whether the probability is below the limit that /about reports, or the image is blank or no digit."
Uncertain = Annotated[bool, Field(description=UNCERTAIN)]
IsDigit = Annotated[bool, Field(description="Whether the digit score reaches the threshold that /about reports.")]
Version = Annotated[str, Field(description="Model version that made the prediction.")]
Id = Annotated[str, Field(description="Id of the prediction.")]


class StoredFields(BaseModel):
    digit: Digit = Field(description="Most probable digit.")
    probability: Probability = Field(description="Calibrated probability of `digit`.")
    probabilities: list[Probability] = Field(min_length=10, max_length=10, description="Of each digit, 0 to 9.")
    model_version: Version


class Prediction(StoredFields):
    id: str | None = Field(description="Id for /feedback and /predictions; null if the prediction is not logged.")
    uncertain: Uncertain
    is_digit: IsDigit
    digit_score: float | None = Field(
        description="How much the image looks like a digit: log-odds, or the negative energy; null if the model has no score."
    )
    prediction_set: PredictionSet


class PredictionList(BaseModel):
    model_version: Version
    predictions: list[Prediction] = Field(description="One prediction for each image, in their order.")


class PicturePrediction(Prediction):
    image: Image = Field(description="The 28 x 28 image that was made of the picture.")


BOX = "Left, top, width and height in pixels of the upright picture."
Box = Annotated[tuple[int, int, int, int], Field(description=BOX)]


class ReadDigit(PicturePrediction):
    digit: Digit = Field(description="Digit in the text of the line; usually the most probable one.")
    box: Box


class Line(BaseModel):
    text: str = Field(description="Digits and the separators . , - / between them.")
    confidence: Probability = Field(description="Share of this text among all that the line may be, if they fit.")
    uncertain: bool = Field(description="Whether the confidence is low, or no text fits `length` and `pattern`.")
    box: Box
    digits: list[ReadDigit] = Field(description="From left to right.")


class ReadPicture(BaseModel):
    text: str = Field(description="The text of all lines, one below the other.")
    lines: list[Line] = Field(description="From top to bottom.")
    left_out: int = Field(description="Number of pieces of ink that are no digits.")
    model_version: Version


FALLS = "How much the probability of `digit` falls where paper covers the pixel, mean of the patches that cover it; below 0 where it rises."
Falls = Annotated[list[Annotated[float, Field(ge=-1, le=1)]], Field(min_length=SIZE, max_length=SIZE)]


class Explanation(BaseModel):
    digit: Digit = Field(description="Most probable digit.")
    probability: Probability = Field(description="Calibrated probability of `digit`.")
    falls: list[Falls] = Field(min_length=SIZE, max_length=SIZE, description=FALLS)
    model_version: Version


class BulkPredictions(BaseModel):
    model_version: Version
    digits: list[Digit] = Field(description="Most probable digit of each image.")
    probabilities: list[Probability] = Field(description="Calibrated probabilities of `digits`.")
    uncertain: list[Uncertain] = Field(description="Whether each prediction is uncertain.")
    is_digit: list[IsDigit] = Field(description="Whether each image shows a digit.")
    prediction_sets: list[PredictionSet] = Field(description="Prediction set of each image.")
    ids: list[str | None] = Field(description="Ids of the predictions; null for those that are not logged.")


LABELLED_BY = "Who labelled it: the name of the API key, or the `source` of the request."


class Feedback(BaseModel):
    id: Id
    digit: Digit | None = Field(description="True digit; null if the image shows none.")
    is_digit: bool = Field(description="Whether the image shows a digit.")
    source: str = Field(description=LABELLED_BY)
    label_number: int | None = Field(
        description="Number for /withdraw; null if nothing was stored, because the same label counts already, and for a training image."
    )


class Withdrawal(BaseModel):
    id: Id
    source: str = Field(description=LABELLED_BY)


# Images of a response of /label_queue, and ids that a request may leave out of it.
DEFAULT_QUEUED, MAX_QUEUED, MAX_EXCLUDED = 20, 50, 500


class QueuedImage(BaseModel):
    id: str = Field(description="Id for /feedback: of the prediction, or of the training image.")
    queue: Queue = Field(description="Why this image.")
    image: Image


class LabelQueue(BaseModel):
    model_version: str | None = Field(description="Version that is served; null before the first champion.")
    is_auditor: bool = Field(description="Whether labels under this key are an auditor's.")
    images: list[QueuedImage] = Field(max_length=MAX_QUEUED, description="Images to label, the most informative first.")
    waiting: dict[Queue, int] = Field(description=f"Number of images in each queue, at most {MAX_LENGTH}.")
    audit_labels: int = Field(description="Answers of the version in the audit sample that are labelled with a digit.")
    min_audit_labels: int = Field(description="Number of them from which accuracy is reported.")
    new_labels: int = Field(description="Labels of digits that no retraining has ingested yet.")
    retrain_labels: int = Field(description="Number of them that starts a retraining.")


class StoredPrediction(StoredFields):
    id: Id
    at: datetime = Field(description="Time of the prediction, UTC.")
    route: str = Field(description="Route that answered.")
    label: Digit | None = Field(description="True digit from feedback; null without any, or if the image shows none.")
    label_is_digit: bool | None = Field(description="Whether the image shows a digit, from feedback; null without any.")
    image: Image


class Sample(BaseModel):
    image: Image
    label: TrueDigit


class Samples(BaseModel):
    model_version: Version
    samples: list[Sample] = Field(description="One image of each digit, then the ten least certain ones.")


class About(BaseModel):
    model_version: str | None = Field(description="Version that is served; null before the first champion.")
    since: datetime | None = Field(description="Time since which this worker serves it, UTC.")
    warning: str | None = Field(description="Why the service cannot follow the registry; null if it can.")
    recipe: dict[str, Any] | None = Field(description="Recipe the version was trained with.")
    dataset: str | None = Field(description="Fingerprint of its training data.")
    metrics: dict[str, Any] | None = Field(description="Metrics on its test images.")
    conformal: dict[str, Any] | None = Field(
        description="Coverage of prediction sets for each digit, its thresholds, and the limit of uncertainty."
    )
    digit_threshold: float | None = Field(description="Digit score below which an image is no digit; null without one.")
    created_at: str | None = Field(description="Time of its registration.")
    run_id: str | None = Field(description="Id of its MLflow run.")
    run_url: str | None = Field(description="Address of its run in MLflow's UI.")
    version_url: str | None = Field(description="Address of its model card in MLflow's UI.")
    log: dict[str, int] = Field(
        description="Prediction log: predictions waiting, sealed and damaged segments, predictions lost."
    )


class Problem(BaseModel):
    error: str = Field(description="One sentence that says what is wrong.")


# BentoML's client encodes arrays and lists alike where it sees a tensor; OpenAPI knows no tensors and gets nested lists.
_IMAGE = TypeAdapter(Image).json_schema()
_IMAGE_LIST = {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": _IMAGE}
Images = Annotated[
    np.ndarray,
    Field(description=f"One image or a list of images: {PIXEL_ROWS}"),
    WithJsonSchema({"oneOf": [_IMAGE, _IMAGE_LIST]}, mode="serialization"),
]
ExplainedImage = Annotated[
    np.ndarray,
    Field(description=f"The image: {PIXEL_ROWS}"),
    WithJsonSchema(_IMAGE, mode="serialization"),
]
Picture = Annotated[Path, Field(description="PNG, JPEG, WebP or BMP file of any size.")]
Length = Annotated[int | None, Field(ge=1, le=100, description="Number of digits in each line.")]
PATTERN = "Regular expression of digits and the separators . , - / that each line matches as a whole."
Pattern = Annotated[str | None, Field(max_length=200, description=PATTERN)]
Preview = Annotated[bool, Field(description="Answer without logging the prediction.")]
# No regular expression of JSON Schema says "printable": ServingContext.feedback checks it.
LABELLER = "Who labelled it, in printable characters; an API key's name takes its place."
Source = Annotated[str, Field(min_length=1, max_length=64, description=LABELLER)]
LABELLED_DIGIT = "True digit, unless `is_digit` is false."
LabelledDigit = Annotated[Digit | None, Field(description=LABELLED_DIGIT)]
NUMBER_TO_WITHDRAW = "`label_number` of the response of /feedback; without it the most recent label of this source."
LabelNumber = Annotated[int | None, Field(ge=1, description=NUMBER_TO_WITHDRAW)]
LabelIsDigit = Annotated[bool, Field(description="False for an image that shows no digit.")]
Pixels = Annotated[bytes, ContentType("application/octet-stream")]
# BentoML's schema generator follows the first entry of an anyOf; a discriminated union is a oneOf.
OneOrMany = Annotated[
    Annotated[Prediction, Tag("one")] | Annotated[PredictionList, Tag("many")],
    Discriminator(lambda value: "one" if isinstance(value, Prediction) else "many"),
]
