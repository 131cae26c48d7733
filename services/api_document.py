"""The OpenAPI document, made from the declared BentoML methods and pydantic models.

BentoML's own document (`DigitClassifier.openapi_spec`) lacks nullable fields, error responses and the routes that are not declared.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from digits.data.rectification import FORMATS
from services.schemas import Problem, Samples, StoredPrediction

Schema = dict[str, Any]

PROBLEMS = {
    400: "The body cannot be parsed.",
    401: "An API key is required, or the one sent is not valid.",
    403: "The API key is revoked, or lacks the role for this route.",
    404: "No prediction has this id.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is not supported.",
    422: "The request is invalid; the sentence quotes the wrong value.",
    429: "The API key exceeded its rate limit; Retry-After says when to ask again.",
    503: "There is no champion yet, too many requests are under way, or the database of the log is unreachable.",
}
EVERY_ROUTE = (401, 403, 429, 503)
_BODY = (400, 408, 413, 422)
_STATUSES = {
    "/classify": _BODY,
    "/classify_file": (*_BODY, 415),
    "/classify_bulk": (408, 413, 422),
    "/feedback": (*_BODY, 404, 415),
    "/predictions/{id}": (404,),
    "/about": (),
    "/samples": (),
    "/metrics": (),
}
# Routes that are not declared as BentoML methods: summary, and the model of the response or None for text.
_OTHER_ROUTES: dict[str, tuple[str, Any]] = {
    "/predictions/{id}": ("A logged prediction with its image and, after feedback, its true digit.", StoredPrediction),
    "/samples": ("Held-out digits to try the model on: ten plain ones and the ten least certain.", Samples),
    "/metrics": ("Metrics in the Prometheus text format.", None),
}
_BINARY: Schema = {"type": "string", "format": "binary"}
_PREVIEW: Schema = {
    "name": "preview",
    "in": "query",
    "description": "Answer without logging the prediction.",
    "schema": {"type": "boolean", "default": False},
}
_ID: Schema = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}


def document(apis: Mapping[str, Any], max_images: int) -> Schema:
    """OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0) of BentoML's declared `apis` and the routes beside them."""
    components: dict[str, Schema] = {"Problem": Problem.model_json_schema()}
    paths: dict[str, Schema] = {}
    for api in apis.values():
        operation = _operation(api.route, api.doc, _content(_schema(api.output_spec.model_json_schema, components)))
        body = _schema(api.input_spec.model_json_schema, components)
        if body.pop("root_input", False) or body["properties"]:
            operation["requestBody"] = {"required": True, "content": {api.input_spec.mime_type(): {"schema": body}}}
        paths[api.route] = {"post": operation}
    for route, (summary, model) in _OTHER_ROUTES.items():
        text = {"text/plain": {"schema": {"type": "string"}}}
        content = _content(_schema(TypeAdapter(model).json_schema, components)) if model else text
        paths[route] = {"get": _operation(route, summary, content)}
    _complete(paths, max_images)
    return {
        "openapi": "3.1.0",
        "info": {"title": "digits", "version": "1", "description": "Classifies images of handwritten digits."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        # {}: no key, where the service does not require one
        "security": [{"key": []}, {"bearer": []}, {}],
    }


def _complete(paths: dict[str, Schema], max_images: int) -> None:
    """Add what BentoML cannot declare: parameters, picture bodies, GET, and limits from the settings."""
    paths["/about"]["get"] = paths["/about"]["post"]
    paths["/predictions/{id}"]["get"]["parameters"] = [_ID]
    picture = paths["/classify_file"]["post"]
    picture["parameters"] = [_PREVIEW]
    picture["requestBody"]["content"] |= {f"image/{kind.lower()}": {"schema": _BINARY} for kind in FORMATS}
    for route in ("/classify", "/feedback"):
        body = paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        body["additionalProperties"] = False
        if route == "/classify":
            body["properties"]["images"]["oneOf"][1]["maxItems"] = max_images


def _operation(route: str, summary: str, content: Schema) -> Schema:
    responses: Schema = {"200": {"description": "The response.", "content": content}}
    problem = _content({"$ref": "#/components/schemas/Problem"})
    for status in sorted({*_STATUSES[route], *EVERY_ROUTE}):
        responses[str(status)] = {"description": PROBLEMS[status], "content": problem}
    return {"summary": summary, "responses": responses}


def _content(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _schema(json_schema: Any, components: dict[str, Schema]) -> Schema:
    """A model's schema without the name that BentoML gives it; the models it refers to go into `components`."""
    schema: Schema = json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    components.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    return schema
