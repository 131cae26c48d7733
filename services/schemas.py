"""The pydantic models of the HTTP API, from which BentoML makes its clients and `/schema.json`, and the OpenAPI document.

BentoML's own document (`DigitClassifier.openapi_spec`) lacks nullable fields, error responses and the routes that are not declared.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from bentoml.validators import ContentType
from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter, WithJsonSchema

from digits.data.rectification import FORMATS
from digits.images import MAX_IMAGES, SIZE
from services.access import CLIENT_HEADER, MAX_CLIENT_LENGTH

Schema = dict[str, Any]

Row = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=SIZE, max_length=SIZE)]
PIXEL_ROWS = f"{SIZE} rows of {SIZE} whole numbers, 0 = paper, 255 = ink."
Image = Annotated[list[Row], Field(min_length=SIZE, max_length=SIZE, description=PIXEL_ROWS)]
Digit = Annotated[int, Field(ge=0, le=9)]
TrueDigit = Annotated[Digit, Field(description="True digit.")]
Probability = Annotated[float, Field(ge=0, le=1.0001)]
COVERAGE = "Digits that include the true one with the coverage at /about, which holds for each digit on images like the validation images."
PredictionSet = Annotated[list[Digit], Field(min_length=1, max_length=10, description=COVERAGE)]
UNCERTAIN = "Whether the probability is below the limit that /about reports, or the image is blank."
Uncertain = Annotated[bool, Field(description=UNCERTAIN)]
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
    prediction_set: PredictionSet


class PredictionList(BaseModel):
    model_version: Version
    predictions: list[Prediction] = Field(description="One prediction for each image, in their order.")


class PicturePrediction(Prediction):
    image: Image = Field(description="The 28 x 28 image that was made of the picture.")


class BulkPredictions(BaseModel):
    model_version: Version
    digits: list[Digit] = Field(description="Most probable digit of each image.")
    probabilities: list[Probability] = Field(description="Calibrated probabilities of `digits`.")
    uncertain: list[Uncertain] = Field(description="Whether each prediction is uncertain.")
    prediction_sets: list[PredictionSet] = Field(description="Prediction set of each image.")
    ids: list[str | None] = Field(description="Ids of the predictions; null for those that are not logged.")


class Feedback(BaseModel):
    id: Id
    digit: TrueDigit
    source: str = Field(description="Who labelled it: the name of the API key, or the `source` of the request.")


class StoredPrediction(StoredFields):
    id: Id
    at: datetime = Field(description="Time of the prediction, UTC.")
    route: str = Field(description="Route that answered.")
    label: Digit | None = Field(description="True digit from feedback; null without any.")
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
    created_at: str | None = Field(description="Time of its registration.")
    run_id: str | None = Field(description="Id of its MLflow run.")
    run_url: str | None = Field(description="Address of its run in MLflow's UI.")
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
Picture = Annotated[Path, Field(description="PNG, JPEG, WebP or BMP file of any size.")]
Preview = Annotated[bool, Field(description="Answer without logging the prediction.")]
# No regular expression of JSON Schema says "printable": ServingContext.feedback checks it.
LABELLER = "Who labelled it, in printable characters; an API key's name takes its place."
Source = Annotated[str, Field(min_length=1, max_length=64, description=LABELLER)]
Pixels = Annotated[bytes, ContentType("application/octet-stream")]
# BentoML's schema generator follows the first entry of an anyOf; a discriminated union is a oneOf.
OneOrMany = Annotated[
    Annotated[Prediction, Tag("one")] | Annotated[PredictionList, Tag("many")],
    Discriminator(lambda value: "one" if isinstance(value, Prediction) else "many"),
]

_CLIENT = {
    "name": CLIENT_HEADER,
    "in": "header",
    "description": "Who sends the images, such as a writer or a device; logged with them, after the name of the API key.",
    # printable ASCII that begins and ends without a blank
    "schema": {"type": "string", "maxLength": MAX_CLIENT_LENGTH, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}

PROBLEMS = {
    400: "The body cannot be parsed.",
    401: "An API key is required, or the one sent is not valid.",
    403: "The API key is revoked, or lacks the role for this route.",
    404: "No prediction has this id.",
    405: "The route does not support this method.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is not supported.",
    422: "The request is invalid; the sentence quotes the wrong value.",
    429: "The API key exceeded its rate limit; Retry-After says when to ask again.",
    503: "There is no champion yet, too many requests are under way, or the database of the log is unreachable.",
}
# Routes that are not declared as BentoML methods: summary, and the model of the response or None for text.
_OTHER_ROUTES: dict[str, tuple[str, type[BaseModel] | None]] = {
    "/predictions/{id}": ("A logged prediction with its image and, after feedback, its true digit.", StoredPrediction),
    "/samples": ("Held-out digits to try the model on: ten plain ones and the ten least certain.", Samples),
    "/metrics": ("Metrics in the Prometheus text format.", None),
}


def openapi_document(apis: Mapping[str, Any], max_images: int) -> Schema:
    """OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0) of BentoML's declared `apis` and the routes beside them."""
    schemas: dict[str, Schema] = {}
    paths: dict[str, Schema] = {}
    # Each is a `_bentoml_sdk.APIMethod`; BentoML documents neither its attributes nor `root_input` in its schemas.
    for api in apis.values():
        operation = _operation(api.doc, _schema(api.output_spec, schemas))
        body = _schema(api.input_spec, schemas)
        if body.pop("root_input", False) or body["properties"]:
            operation["requestBody"] = {"required": True, "content": {api.input_spec.mime_type(): {"schema": body}}}
        paths[api.route] = {"post": operation}
    for route, (summary, model) in _OTHER_ROUTES.items():
        paths[route] = {"get": _operation(summary, _schema(model, schemas) if model else None)}
    _complete(paths, max_images)
    problem = {"application/json": {"schema": _schema(Problem, schemas)}}
    security = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "digits", "version": "1", "description": "Classifies images of handwritten digits."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(status): {"description": text, "content": problem} for status, text in PROBLEMS.items()},
            "securitySchemes": security,
        },
        # {}: no key, where the service does not require one
        "security": [*({name: []} for name in security), {}],
    }


def _complete(paths: dict[str, Schema], max_images: int) -> None:
    """Add what BentoML cannot declare: GET, parameters, picture bodies, closed objects, and a limit from the settings."""
    paths["/about"]["get"] = paths["/about"]["post"]
    for route in ("/classify", "/classify_file", "/classify_bulk"):
        paths[route]["post"]["parameters"] = [_CLIENT]
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/predictions/{id}"]["get"]["parameters"] = [id]
    picture = paths["/classify_file"]["post"]
    preview = {"name": "preview", "in": "query", "schema": {"type": "boolean", "default": False}}
    picture["parameters"] = [_CLIENT, preview]
    binary = {"schema": {"type": "string", "format": "binary"}}
    picture["requestBody"]["content"] |= {f"image/{kind.lower()}": binary for kind in FORMATS}
    classify, feedback = (
        paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for route in ("/classify", "/feedback")
    )
    classify["additionalProperties"] = feedback["additionalProperties"] = False
    classify["properties"]["images"]["oneOf"][1]["maxItems"] = max_images


def _operation(summary: str, response: Schema | None) -> Schema:
    """One operation; without a schema of its response it answers text."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    content = {"application/json": {"schema": response}} if response else text
    problems = {str(status): {"$ref": f"#/components/responses/{status}"} for status in PROBLEMS}
    return {"summary": summary, "responses": {"200": {"description": "The response.", "content": content}} | problems}


def _schema(model: type[BaseModel], schemas: dict[str, Schema]) -> Schema:
    """A model's schema without the name that BentoML gives it; the models it refers to go into `schemas`."""
    schema: Schema = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    return schema
