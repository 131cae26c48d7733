"""The OpenAPI description of the real routes, their answers and their errors, as `/openapi.json` gives it and `/docs` shows it."""

from typing import Any

from digits.data.rectification import FORMATS
from digits.images import MAX_IMAGES, SIZE

Schema = dict[str, Any]

_ROW: Schema = {
    "type": "array",
    "minItems": SIZE,
    "maxItems": SIZE,
    "items": {"type": "integer", "minimum": 0, "maximum": 255},
}
_IMAGE: Schema = {
    "type": "array",
    "minItems": SIZE,
    "maxItems": SIZE,
    "items": _ROW,
    "description": f"{SIZE} rows of {SIZE} whole numbers, 0 = paper, 255 = ink",
}
_DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1.0001}
_PROBABILITIES: Schema = {"type": "array", "minItems": 10, "maxItems": 10, "items": _PROBABILITY}
_ID: Schema = {"type": "string", "description": "Name of this answer, for /feedback and /predictions"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}


def _object(properties: Schema, required: list[str] | None = None, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "required": required or list(properties)}
    return {**schema, "additionalProperties": False} if closed else schema


_SET: Schema = {
    "type": "array",
    "minItems": 1,
    "maxItems": 10,
    "uniqueItems": True,
    "items": _DIGIT,
    "description": "The digits that cannot be ruled out: the true one is among them with the coverage that /about states, "
    "for images like those the version was calibrated on",
}
_UNSURE: Schema = {
    "type": "boolean",
    "description": "Whether the digit is a guess: the calibrated probability is below the limit that /about states, or the image is blank",
}
_LOGGED_FIELDS: Schema = {
    "id": _ID,
    "digit": _DIGIT,
    "probability": _PROBABILITY,
    "probabilities": _PROBABILITIES,
    "model_version": {"type": "string"},
}
_ANSWER_FIELDS: Schema = {
    **_LOGGED_FIELDS,
    "id": {"type": ["string", "null"], "description": f"{_ID['description']}; null where the log is full"},
    "uncertain": _UNSURE,
    "prediction_set": _SET,
}

SCHEMAS: dict[str, Schema] = {
    "Image": _IMAGE,
    "Images": {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_IMAGES,
        "items": {"$ref": "#/components/schemas/Image"},
    },
    "Answer": _object(_ANSWER_FIELDS),
    "Answers": _object(
        {
            "model_version": {"type": "string"},
            "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Answer"}},
        }
    ),
    "PictureAnswer": _object(
        {
            **_ANSWER_FIELDS,
            "id": {"type": ["string", "null"], "description": "null for a preview, which is not logged"},
            "image": {"$ref": "#/components/schemas/Image"},
        }
    ),
    "BulkAnswer": _object(
        {
            "model_version": {"type": "string"},
            "digits": {"type": "array", "items": _DIGIT},
            "probabilities": {"type": "array", "items": _PROBABILITY, "description": "of each answered digit"},
            "uncertain": {"type": "array", "items": _UNSURE},
            "prediction_sets": {"type": "array", "items": _SET},
            "ids": {"type": "array", "items": {"type": ["string", "null"]}, "description": "null where not logged"},
        }
    ),
    "Feedback": _object(
        {
            "id": _ID,
            "digit": _DIGIT,
            "source": {
                "type": "string",
                "minLength": 1,
                "maxLength": 64,
                "pattern": "^[ -~]+$",
                "description": "who says so",
            },
        },
        required=["id", "digit"],
        closed=True,
    ),
    "Prediction": _object(
        {
            **_LOGGED_FIELDS,
            "at": {"type": "string", "format": "date-time"},
            "route": {"type": "string"},
            "label": {"type": ["integer", "null"], "description": "the true digit, where feedback told it"},
            "image": {"$ref": "#/components/schemas/Image"},
        }
    ),
    "Samples": _object(
        {
            "model_version": {"type": "string"},
            "samples": {
                "type": "array",
                "items": _object({"image": {"$ref": "#/components/schemas/Image"}, "label": _DIGIT}),
            },
        }
    ),
    "About": _object(
        {
            "model_version": _TEXT_OR_NULL,
            "since": _TEXT_OR_NULL,
            "warning": {
                "type": ["string", "null"],
                "description": "what keeps the service from following the champion",
            },
            "recipe": {"type": ["object", "null"]},
            "dataset": _TEXT_OR_NULL,
            "metrics": {"type": ["object", "null"]},
            "conformal": {
                "type": ["object", "null"],
                "description": "coverage of the prediction sets, and uncertain_below, the probability below which an answer is unsure",
            },
            "created_at": _TEXT_OR_NULL,
            "run_id": _TEXT_OR_NULL,
            "run_url": _TEXT_OR_NULL,
            "log": {"type": "object"},
        }
    ),
    "Problem": _object({"error": {"type": "string", "description": "one sentence"}}),
}

_PROBLEMS = {
    400: "The body cannot be read.",
    401: "An API key is needed, or the one sent is none.",
    403: "The API key was revoked, or does not hold the role for this.",
    404: "Nothing has this id.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is none that is taken.",
    422: "What was sent is wrong; the sentence quotes it.",
    429: "The API key has asked too often; Retry-After says when to ask again.",
    503: "There is no champion yet, too many requests are under way, or the log's database is away.",
}


def _content(name: str, kind: str = "application/json") -> Schema:
    return {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _operation(summary: str, answer: Schema, problems: tuple[int, ...], **more: Any) -> Schema:
    responses = {"200": {"description": "The answer.", "content": answer}}
    late = (408,) if "requestBody" in more else ()
    for status in sorted({*problems, *late, 401, 403, 429, 503}):
        responses[str(status)] = {"description": _PROBLEMS[status], "content": _content("Problem")}
    return {"summary": summary, "responses": responses, **more}


def _body(content: Schema) -> Schema:
    return {"required": True, "content": content}


def document(most_images: int = MAX_IMAGES) -> Schema:
    """The description with so many images in a list at most, OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0)."""
    one_or_many = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Image", "Images")]}
    one_or_many_answers = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Answer", "Answers")]}
    picture: Schema = {"type": "string", "format": "binary"}
    uploads = {f"image/{kind.lower()}": {"schema": picture} for kind in FORMATS}
    form = {"multipart/form-data": {"schema": _object({"file": picture})}}
    preview = {
        "name": "preview",
        "in": "query",
        "description": "Answer without logging, as the page does while somebody draws.",
        "schema": {"type": "boolean", "default": False},
    }
    id_in_path = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "digits",
            "version": "1",
            "description": "Tells which digit an image shows. Every answer names the model version that gave it.",
        },
        "paths": {
            "/classify": {
                "post": _operation(
                    "Which digit one image, or each of a list of images, shows. A list is answered by a list.",
                    {"application/json": {"schema": one_or_many_answers}},
                    (400, 413, 422, 503),
                    requestBody=_body({"application/json": {"schema": _object({"images": one_or_many}, closed=True)}}),
                )
            },
            "/classify_file": {
                "post": _operation(
                    "Which digit a picture of any size shows, and the 28 x 28 image that was made of it.",
                    _content("PictureAnswer"),
                    (400, 413, 415, 422, 503),
                    parameters=[preview],
                    requestBody=_body({**form, **uploads}),
                )
            },
            "/classify_bulk": {
                "post": _operation(
                    "The fast path: raw uint8 pixels, 784 bytes per image, row by row.",
                    _content("BulkAnswer"),
                    (413, 422, 503),
                    requestBody=_body({"application/octet-stream": {"schema": picture}}),
                )
            },
            "/feedback": {
                "post": _operation(
                    "The true digit of an earlier answer. The last word counts; saying it twice changes nothing.",
                    _content("Feedback"),
                    (400, 404, 413, 415, 422, 503),
                    requestBody=_body(_content("Feedback")),
                )
            },
            "/predictions/{id}": {
                "get": _operation(
                    "An earlier answer with its image and, where known, its true digit.",
                    _content("Prediction"),
                    (404, 503),
                    parameters=[id_in_path],
                )
            },
            "/samples": {
                "get": _operation(
                    "Held-out digits to try the version on that answers: ten plain ones and its ten hardest.",
                    _content("Samples"),
                    (503,),
                )
            },
            "/about": {"get": _operation("The version that answers, its recipe and metrics.", _content("About"), ())},
            "/metrics": {
                "get": _operation("Figures for Prometheus.", {"text/plain": {"schema": {"type": "string"}}}, ())
            },
        },
        "components": {
            "schemas": {**SCHEMAS, "Images": {**SCHEMAS["Images"], "maxItems": most_images}},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"key": []}, {"bearer": []}, {}],  # {}: none, where the service is open
    }
