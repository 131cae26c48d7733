"""The OpenAPI document of the HTTP API, served at `/openapi.json` and shown at `/docs`.

BentoML's own document (`DigitClassifier.openapi_spec`) lacks nullable fields, error responses, examples and the routes that are not
declared.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from digits.images import SIZE
from digits.pictures.picture_files import FORMATS
from digits.storage.label_queue import QUEUES
from services.access import CLIENT_HEADER, MAX_CLIENT_LENGTH
from services.schemas import DEFAULT_QUEUED, MAX_EXCLUDED, MAX_QUEUED, LabelQueue, Problem, Samples, StoredPrediction

Schema = dict[str, Any]

_ID = "0192f0c1a2b34c5d8e9f0a1b2c3d4e5f"
_CLIENT = {
    "name": CLIENT_HEADER,
    "in": "header",
    "description": "Who sends the images, such as a writer or a device; logged with them, after the name of the API key.",
    # printable ASCII that begins and ends without a blank
    "schema": {"type": "string", "maxLength": MAX_CLIENT_LENGTH, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "Id of the request in the response and in the error log; made by the service if it is missing or malformed.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:/+=-]{1,64}$"},
}
_QUEUE_PARAMETERS: list[Schema] = [
    {
        "name": "limit",
        "in": "query",
        "description": "Maximum number of images.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_QUEUED, "default": DEFAULT_QUEUED},
    },
    {
        "name": "queue",
        "in": "query",
        "description": "Only images of this queue.",
        "schema": {"type": "string", "enum": list(QUEUES)},
    },
    {
        "name": "exclude",
        "in": "query",
        "description": f"Ids to leave out, with commas between them; at most {MAX_EXCLUDED}.",
        "schema": {"type": "string"},
    },
]

PROBLEMS = {
    400: "The body cannot be parsed, or a header is repeated.",
    401: "An API key is required, or the one sent is not valid.",
    403: "The API key is revoked or lacks the role for this route, or a page of another origin sent the request.",
    404: "No prediction has this id.",
    405: "The route does not support this method.",
    408: "The body did not arrive in time.",
    409: "A retraining has ingested the label, so that it cannot be taken back.",
    413: "The body is too large.",
    415: "The content type or the content encoding is not supported.",
    421: "The Host header names another service.",
    422: "The request is invalid; the sentence quotes the wrong value.",
    429: "The API key exceeded its rate limit; Retry-After says when to ask again.",
    503: "There is no champion yet, too many requests are under way, or the database of the log is unreachable.",
}
# An error sentence of each status.
PROBLEM_EXAMPLES = {
    400: "the header host was sent 2 times; send it once",
    401: "this is no valid API key; send one as X-API-Key or as Authorization: Bearer (`digits keys create` makes one)",
    403: "the key 'ward-3' may not do this; /feedback needs the role feedback",
    404: f'no prediction has the id "{_ID}"; send the id of a prediction',
    405: "/classify does not support GET; send POST",
    408: "the body did not arrive within 10 s; send it faster, or less at a time",
    409: f'a retraining has ingested the label of "{_ID}"; send the right digit to /feedback instead',
    413: "the body has 16,000,001 bytes or more; send at most 16,000,000",
    415: 'the content encoding is "gzip"; send the body uncompressed',
    421: 'the host "evil.example" is not served here; name it in DIGITS_ALLOWED_HOSTS',
    422: "images, row 5, column 7 is 300; expected a whole number from 0 to 255",
    429: "the key 'ward-3' may ask 600 times a minute; ask again in 3 s",
    503: "the service has 64 requests under way; ask again in a second",
}
# Any request can end with one of these; the others need a body, or the id of a prediction.
_ALWAYS = {400, 401, 403, 405, 421, 422, 429, 503}
_OF_BODIES = {408, 413, 415}
_IDENTIFIED = {"/feedback", "/withdraw", "/predictions/{id}"}
_HEADERS = {
    "X-Request-ID": "Id of the request: the one that it brought, or a new one.",
    "Retry-After": "Seconds after which the request can be sent again.",
    "WWW-Authenticate": "Bearer: an API key is needed.",
    "Allow": "The methods that the route supports.",
}
_PROBLEM_HEADERS = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
# Routes that are not declared as BentoML methods: name, summary, and the model of the response or None for text.
_OTHER_ROUTES: dict[str, tuple[str, str, type[BaseModel] | None]] = {
    "/predictions/{id}": (
        "stored_prediction",
        "A logged prediction with its image and, after feedback, its true digit.",
        StoredPrediction,
    ),
    "/label_queue": ("label_queue", "Images to label next, the most informative first.", LabelQueue),
    "/samples": (
        "samples",
        "Held-out digits to try the model on: ten plain ones and the ten least certain.",
        Samples,
    ),
    "/metrics": ("metrics", "Metrics in the Prometheus text format.", None),
    "/livez": ("livez", "200 once the process lives.", None),
    "/readyz": ("readyz", "200 once there is a champion, and while predictions can be logged.", None),
}

_ONE = [[255 if 5 <= row < 23 and 13 <= column < 15 else 0 for column in range(SIZE)] for row in range(SIZE)]
_STORED = {
    "digit": 1,
    "probability": 0.982,
    "probabilities": [0.002, 0.982, *[0.002] * 8],
    "model_version": "7",
}
_PREDICTION = {
    "id": _ID,
    **_STORED,
    "uncertain": False,
    "is_digit": True,
    "digit_score": 9.3,
    "prediction_set": [1],
}
# Of what each operation is sent and answers.
BODY_EXAMPLES: dict[str, Any] = {
    "classify": {"images": _ONE},
    "classify_file": {"file": "the bytes of digit.png", "preview": False},
    "read": {"file": "the bytes of number.png", "length": 1, "pattern": "[0-9]+", "preview": False},
    "explain": {"image": _ONE},
    "classify_bulk": "784 bytes for each image",
    "feedback": {"id": _ID, "digit": 7, "source": "ward-3"},
    "withdraw": {"id": _ID, "source": "ward-3", "label_number": 12},
}
ANSWER_EXAMPLES: dict[str, Any] = {
    "classify": _PREDICTION,
    "classify_file": {**_PREDICTION, "image": _ONE},
    "read": {
        "text": "1",
        "lines": [
            {
                "text": "1",
                "confidence": 0.98,
                "uncertain": False,
                "box": [31, 12, 6, 58],
                "digits": [{**_PREDICTION, "image": _ONE, "box": [31, 12, 6, 58]}],
            }
        ],
        "left_out": 0,
        "model_version": "7",
    },
    "explain": {
        "digit": 1,
        "probability": 0.982,
        "falls": [[0.4 if pixel else 0.0 for pixel in row] for row in _ONE],
        "model_version": "7",
    },
    "classify_bulk": {
        "model_version": "7",
        "digits": [1, 7],
        "probabilities": [0.982, 0.61],
        "uncertain": [False, True],
        "is_digit": [True, True],
        "prediction_sets": [[1], [1, 7]],
        "ids": [_ID, None],
    },
    "feedback": {"id": _ID, "digit": 7, "is_digit": True, "source": "ward-3", "label_number": 12},
    "withdraw": {"id": _ID, "source": "ward-3"},
    "label_queue": {
        "model_version": "7",
        "is_auditor": True,
        "images": [{"id": _ID, "queue": "audit", "image": _ONE}],
        "waiting": {"audit": 1, "uncertain": 0, "disagreement": 0, "quarantine": 0, "suspected": 0},
        "audit_labels": 12,
        "min_audit_labels": 50,
        "new_labels": 40,
        "retrain_labels": 200,
    },
    "about": {
        "model_version": "7",
        "since": "2026-01-02T12:00:00Z",
        "warning": None,
        "recipe": {"name": "compact", "seed": 0},
        "dataset": "0123456789abcdef",
        "metrics": {"test_accuracy": 0.979},
        "conformal": {"coverage": 0.99, "uncertain_below": 0.9, "ratios": [0.1] * 10},
        "digit_threshold": 1.5,
        "created_at": "2026-01-02T11:58:00+00:00",
        "run_id": "5f3c",
        "run_url": "http://127.0.0.1:5000/#/experiments/1/runs/5f3c?workflowType=machine_learning",
        "version_url": "http://127.0.0.1:5000/#/models/digits/versions/7?workflowType=machine_learning",
        "log": {"waiting": 0, "sealed_segments": 0, "damaged_segments": 0, "lost": 0},
    },
    "stored_prediction": {
        "id": _ID,
        **_STORED,
        "at": "2026-01-02T12:00:00Z",
        "route": "/classify",
        "label": 7,
        "label_is_digit": True,
        "image": _ONE,
    },
    "samples": {"model_version": "7", "samples": [{"image": _ONE, "label": 1}]},
    "metrics": 'digits_requests_total{route="/classify",status="200"} 12.0\n',
    "livez": "\n",
    "readyz": "\n",
}


def openapi_document(apis: Mapping[str, Any], max_images: int) -> Schema:
    """OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0) of BentoML's declared `apis` and the routes beside them."""
    schemas: dict[str, Schema] = {}
    paths: dict[str, Schema] = {}
    # Each is a `_bentoml_sdk.APIMethod`; BentoML documents neither its attributes nor `root_input` in its schemas.
    for api in apis.values():
        operation = _operation(api.name, api.doc, _schema(api.output_spec, schemas))
        body = _schema(api.input_spec, schemas)
        if body.pop("root_input", False) or body["properties"]:
            content = {"schema": body, "example": BODY_EXAMPLES[api.name]}
            operation["requestBody"] = {"required": True, "content": {api.input_spec.mime_type(): content}}
        paths[api.route] = {"post": operation}
    for route, (name, summary, model) in _OTHER_ROUTES.items():
        paths[route] = {"get": _operation(name, summary, _schema(model, schemas) if model else None)}
    _complete(paths, max_images)
    _add_problems(paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "digits", "version": "1", "description": "Classifies images of handwritten digits."},
        "paths": paths,
        "components": _components(schemas),
        # {}: no key, where the service does not require one
        "security": [{"key": []}, {"bearer": []}, {}],
    }


def _components(schemas: dict[str, Schema]) -> Schema:
    """What the operations refer to."""
    return {
        "schemas": schemas | {"Problem": _schema(Problem, schemas)},
        "responses": {str(status): _problem(status) for status in PROBLEMS},
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
        "securitySchemes": {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        },
    }


def _complete(paths: dict[str, Schema], max_images: int) -> None:
    """Add what BentoML cannot declare: GET, parameters, picture bodies, closed objects, and a limit from the settings."""
    # BentoML's client sends POST
    paths["/about"]["get"] = paths["/about"]["post"]
    paths["/about"]["post"] = {**paths["/about"]["get"], "operationId": "about_post"}
    for route in ("/classify", "/classify_file", "/read", "/classify_bulk"):
        paths[route]["post"]["parameters"] += [_CLIENT]
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": _ID}
    paths["/predictions/{id}"]["get"]["parameters"] += [id]
    for name in ("classify_file", "read"):
        picture = paths[f"/{name}"]["post"]
        content = picture["requestBody"]["content"]
        (form,) = content.values()
        fields = {field: schema for field, schema in form["schema"]["properties"].items() if field != "file"}
        picture["parameters"] += [{"name": field, "in": "query", "schema": schema} for field, schema in fields.items()]
        binary = {"schema": {"type": "string", "format": "binary"}, "example": BODY_EXAMPLES[name]["file"]}
        content |= {f"image/{kind.lower()}": binary for kind in FORMATS}
    paths["/label_queue"]["get"]["parameters"] += _QUEUE_PARAMETERS
    for route in ("/classify", "/explain", "/feedback", "/withdraw"):
        paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]["additionalProperties"] = False
    classify = paths["/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    classify["properties"]["images"]["oneOf"][1]["maxItems"] = max_images


def _add_problems(paths: dict[str, Schema]) -> None:
    """Add to each operation the errors that it can answer."""
    for route, operations in paths.items():
        for method, operation in operations.items():
            statuses = _ALWAYS | (_OF_BODIES if method == "post" else set())
            statuses |= {404} if route in _IDENTIFIED else set()
            statuses |= {409} if route == "/withdraw" else set()
            problems = {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)}
            operation["responses"] = operation["responses"] | problems


def _operation(name: str, summary: str, response: Schema | None) -> Schema:
    """One operation; without a schema of its response it answers text."""
    media, schema = ("application/json", response) if response else ("text/plain", {"type": "string"})
    content = {media: {"schema": schema, "example": ANSWER_EXAMPLES[name]}}
    success = {"description": "The response.", "headers": _headers("X-Request-ID"), "content": content}
    return {"operationId": name, "summary": summary, "parameters": [_REQUEST_ID], "responses": {"200": success}}


def _problem(status: int) -> Schema:
    names = ["X-Request-ID", *([_PROBLEM_HEADERS[status]] if status in _PROBLEM_HEADERS else [])]
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": {"error": PROBLEM_EXAMPLES[status]}}
    return {
        "description": PROBLEMS[status],
        "headers": _headers(*names),
        "content": {"application/json": content},
    }


def _headers(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _schema(model: type[BaseModel], schemas: dict[str, Schema]) -> Schema:
    """A model's schema without the name that BentoML gives it; the models it refers to go into `schemas`."""
    schema: Schema = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    return schema
