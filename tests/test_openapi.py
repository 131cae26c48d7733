"""Requests made up from the OpenAPI document: whatever it allows or forbids, the service has an answer that it describes."""

from contextlib import suppress
from typing import Any

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

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_the_routes_that_log_images_name_the_client(service: Service) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    named = {
        path
        for path, operations in paths.items()
        for operation in operations.values()
        if any(parameter["name"] == "X-Client-ID" for parameter in operation.get("parameters", ()))
    }
    assert named == {"/classify", "/classify_file", "/classify_bulk"}


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
