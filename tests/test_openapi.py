"""Requests made up from the OpenAPI document: whatever it allows or forbids, the service has an answer that it describes."""

from contextlib import suppress
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import Service

from digits.pictures.picture_files import FORMATS

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_the_routes_that_log_images_name_the_client(service: Service) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    named = {
        path
        for path, operations in paths.items()
        for operation in operations.values()
        if any(parameter["name"] == "X-Client-ID" for parameter in operation.get("parameters", ()))
    }
    assert named == {"/classify", "/classify_file", "/classify_bulk", "/read"}


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): one for path, item in document["paths"].items() for method, one in item.items()}


@pytest.fixture
def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get("/openapi.json").json()
    return found


def test_the_document_is_valid_and_names_every_operation_once(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(names)) == len(names) == 15


def test_every_body_and_answer_has_an_example_of_its_schema(document: dict[str, Any]) -> None:
    """Those of JSON are valid; bytes have no JSON."""
    found = 0
    for operation in operations(document).values():
        for part in (operation.get("requestBody", {"content": {}}), operation["responses"]["200"]):
            for kind, media in part["content"].items():
                found += 1
                assert media["example"], operation["operationId"]
                if kind == "application/json":
                    jsonschema.validate(media["example"], {**media["schema"], "components": document["components"]})
    problems = [answer["content"]["application/json"] for answer in document["components"]["responses"].values()]
    for media in problems:
        jsonschema.validate(media["example"], {**media["schema"], "components": document["components"]})
    assert len({media["example"]["error"] for media in problems}) == len(problems) == 13
    assert found == 15 + 7 + 2 * len(FORMATS)


@pytest.mark.parametrize("path", ["/classify", "/explain"])
def test_the_example_of_a_request_is_answered(document: dict[str, Any], service: Service, path: str) -> None:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert service.client.post(path, json=body).status_code == 200


def test_every_operation_names_its_errors_and_their_headers(document: dict[str, Any]) -> None:
    expected = {"400", "401", "403", "405", "421", "422", "429", "503"}
    for (method, path), operation in operations(document).items():
        named = set(operation["responses"]) - {"200"}
        bodies = {"408", "413", "415"} if method == "post" else set()
        missing = {"404"} if path in ("/feedback", "/withdraw", "/predictions/{id}") else set()
        late = {"409"} if path == "/withdraw" else set()
        assert named == expected | bodies | missing | late, path
        assert set(operation["responses"]["200"]["headers"]) == {"X-Request-ID"}
    responses = document["components"]["responses"]
    headers = {status: set(response["headers"]) - {"X-Request-ID"} for status, response in responses.items()}
    assert {status: names for status, names in headers.items() if names} == {
        "401": {"WWW-Authenticate"},
        "405": {"Allow"},
        "429": {"Retry-After"},
        "503": {"Retry-After"},
    }
    assert set(document["components"]["headers"]) == {"X-Request-ID", "Retry-After", "WWW-Authenticate", "Allow"}


def test_every_answer_is_described(service: Service) -> None:
    document = schemathesis.openapi.from_url(f"{service.client.base_url}/openapi.json")
    sent: set[tuple[str, str]] = set()
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:

            @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                sent.add((case.method, case.path))
                case.call_and_validate(checks=CHECKS, timeout=60)

            with suppress(Unsatisfiable):  # where nothing is asked, nothing can be wrong
                ask()
    paths = service.client.get("/openapi.json").json()["paths"]
    assert {path for _, path in sent} == set(paths)
