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
_ANY_ROUTE = (401, 403, 429, 503)
_STATUSES = {
    "/classify": (400, 408, 413, 422),
    "/classify_file": (400, 408, 413, 415, 422),
    "/classify_bulk": (408, 413, 422),
    "/feedback": (400, 404, 408, 413, 415, 422),
    "/predictions/{id}": (404,),
}
# Routes that are not declared as BentoML methods: summary, and the model of the response or None for text.
_OTHER_ROUTES: dict[str, tuple[str, Any]] = {
    "/predictions/{id}": ("A logged prediction with its image and, after feedback, its true digit.", StoredPrediction),
    "/samples": ("Held-out digits to try the model on: ten plain ones and the ten least certain.", Samples),
    "/metrics": ("Metrics in the Prometheus text format.", None),
}
_SECURITY_SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def document(apis: Mapping[str, Any], max_images: int) -> Schema:
    """OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0) of BentoML's declared `apis` and the routes beside them."""
    components: dict[str, Schema] = {"Problem": Problem.model_json_schema()}
    paths: dict[str, Schema] = {}
    for api in apis.values():
        operation = _operation(api.route, api.doc, _schema(api.output_spec.model_json_schema, components))
        body = _schema(api.input_spec.model_json_schema, components)
        if body.pop("root_input", False) or body["properties"]:
            operation["requestBody"] = {"required": True, "content": {api.input_spec.mime_type(): {"schema": body}}}
        paths[api.route] = {"post": operation}
    for route, (summary, model) in _OTHER_ROUTES.items():
        response = _schema(TypeAdapter(model).json_schema, components) if model else None
        paths[route] = {"get": _operation(route, summary, response)}
    _complete(paths, max_images)
    return {
        "openapi": "3.1.0",
        "info": {"title": "digits", "version": "1", "description": "Classifies images of handwritten digits."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SECURITY_SCHEMES},
        # {}: no key, where the service does not require one
        "security": [*({name: []} for name in _SECURITY_SCHEMES), {}],
    }


def _complete(paths: dict[str, Schema], max_images: int) -> None:
    """Add what BentoML cannot declare: GET, parameters, picture bodies, closed objects, and a limit from the settings."""
    paths["/about"]["get"] = paths["/about"]["post"]
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/predictions/{id}"]["get"]["parameters"] = [id]
    picture = paths["/classify_file"]["post"]
    picture["parameters"] = [{"name": "preview", "in": "query", "schema": {"type": "boolean", "default": False}}]
    binary = {"schema": {"type": "string", "format": "binary"}}
    picture["requestBody"]["content"] |= {f"image/{kind.lower()}": binary for kind in FORMATS}
    classify, feedback = (
        paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for route in ("/classify", "/feedback")
    )
    classify["additionalProperties"] = feedback["additionalProperties"] = False
    classify["properties"]["images"]["oneOf"][1]["maxItems"] = max_images


def _operation(route: str, summary: str, response: Schema | None) -> Schema:
    """One operation; without a schema of its response it answers text."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    content = {"application/json": {"schema": response}} if response else text
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: Schema = {"200": {"description": "The response.", "content": content}}
    for status in sorted({*_STATUSES.get(route, ()), *_ANY_ROUTE}):
        responses[str(status)] = {"description": PROBLEMS[status], "content": problem}
    return {"summary": summary, "responses": responses}


def _schema(json_schema: Any, components: dict[str, Schema]) -> Schema:
    """A model's schema without the name that BentoML gives it; the models it refers to go into `components`."""
    schema: Schema = json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    components.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    return schema
