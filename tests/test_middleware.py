"""What every response has in common: an id, an error as JSON that nobody keeps, HEAD, and no query parameter of the API that is ignored."""

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from serving import Service

from digits import logs
from digits.settings import Settings
from services.middleware import Exchange, request_id
from services.request_body import BodyMemory, RequestBody

PAGES = ("/", "/draw", "/docs", "/page/page.js", "/static_content/swagger-ui.css", "/openapi.json", "/schema.json")
NOT_OF_THE_API = (*PAGES, "/metrics", "/livez", "/readyz")
GETS = (*NOT_OF_THE_API, "/about", "/samples")
# method, path, headers, body, status
ERRORS: dict[str, tuple[str, str, dict[str, str], bytes, int]] = {
    "unknown path": ("GET", "/nothing", {}, b"", 404),
    "unknown file of the page": ("GET", "/page/nothing.js", {}, b"", 404),
    "unknown file of BentoML": ("GET", "/static_content/nothing.js", {}, b"", 404),
    "path out of the page": ("GET", "/page/..%2frouter.py", {}, b"", 404),
    "folder": ("GET", "/page/", {}, b"", 404),
    "other method": ("PUT", "/classify", {}, b"", 405),
    "other method of the page": ("POST", "/page/page.js", {}, b"", 405),
    "other method of BentoML": ("POST", "/livez", {}, b"", 405),
    "preflight": ("OPTIONS", "/classify", {"Origin": "https://a.example"}, b"", 405),
    "no JSON": ("POST", "/classify", {}, b"{", 400),
    "form in another encoding": (
        *(
            "POST",
            "/classify_file",
            {"Content-Type": "multipart/form-data; boundary=b; charset=utf-8; charset=punycode"},
        ),
        *(b'--b\r\nContent-Disposition: form-data; name="preview"\r\n\r\ntrue\r\n--b--\r\n', 415),
    ),
    "large form field": (
        *("POST", "/classify_file", {"Content-Type": "multipart/form-data; boundary=b; charset=UTF-8"}),
        *(b'--b\r\nContent-Disposition: form-data; name="preview"\r\n\r\n' + b"a" * 2_000 + b"\r\n--b--\r\n", 400),
    ),
    "unknown id": ("GET", "/predictions/nobody", {}, b"", 404),
    "too large": ("POST", "/feedback", {"Content-Type": "application/json"}, b" " * 20_000, 413),
    "content type": ("POST", "/feedback", {}, b"{}", 415),
    "host": ("GET", "/about", {"Host": "evil.example"}, b"", 421),
    "origin": ("POST", "/about", {"Origin": "https://evil.example"}, b"{}", 403),
    "client": ("POST", "/classify", {"X-Client-ID": "x" * 65}, b"{}", 422),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_json_that_nobody_keeps_and_has_the_id_of_its_request(name: str, service: Service) -> None:
    method, path, headers, content, status = ERRORS[name]
    # the database is opened a moment after the start
    service.wait_for(lambda: service.status("/predictions/nobody") == 404)
    response = service.client.request(method, path, headers={**headers, "X-Request-ID": "a-1"}, content=content)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json" and set(response.json()) == {"error"}
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"] == "a-1"
    assert (status == 405) == ("allow" in response.headers)


@pytest.mark.parametrize("path", GETS)
def test_head_answers_as_get_without_the_content(path: str, service: Service) -> None:
    got, head = service.client.get(path), service.client.head(path)
    assert head.status_code == got.status_code == 200 and head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert path in ("/metrics", "/about") or head.headers["content-length"] == str(len(got.content))
    for response in (got, head):
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize(
    "path", ["/about", "/samples", "/predictions/nobody", "/classify", "/classify_bulk", "/feedback"]
)
def test_a_query_parameter_that_the_route_does_not_have_is_refused(path: str, service: Service) -> None:
    method = "POST" if path in ("/classify", "/classify_bulk", "/feedback") else "GET"
    for query in ("preview=true", "a", "a=1&a=2"):
        response = service.client.request(method, f"{path}?{query}")
        assert response.status_code == 422 and "is not one of this route" in response.json()["error"], path


@pytest.mark.parametrize("path", NOT_OF_THE_API)
def test_pages_and_health_checks_ignore_query_parameters(path: str, service: Service) -> None:
    assert service.client.get(f"{path}?utm_source=mail&verbose").status_code == 200


def test_the_preview_is_a_parameter_of_pictures_alone_and_once(service: Service) -> None:
    picture = (Path(__file__).parent.parent / "docs" / "seven.png").read_bytes()
    assert service.client.post("/classify_file?preview=true", content=picture).json()["id"] is None
    for query, sentence in (("preview=true&preview=false", "is sent twice"), ("Preview=true", "the route has preview")):
        refused = service.client.post(f"/classify_file?{query}", content=picture)
        assert refused.status_code == 422 and sentence in refused.json()["error"]


@pytest.mark.parametrize("id", ["a", "3f2c-77:a/b+c=", "x" * 64])
def test_the_id_of_a_request_is_the_clients(id: str, service: Service) -> None:
    assert service.client.get("/livez", headers={"X-Request-ID": id}).headers["x-request-id"] == id


@pytest.mark.parametrize("id", [b"", b"x" * 65, b"a b", b"a\nb", b'a"b', b"\xe4", b"--"])
def test_another_id_is_replaced(id: bytes) -> None:
    made = request_id(id)
    assert re.fullmatch(rb"[0-9a-f]{32}", made) and request_id(id) != made


def test_the_error_log_has_the_id(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def refuse() -> None:
        headers = {b"x-request-id": b"a-1"}
        body = RequestBody(receive, headers, BodyMemory(Settings(_env_file=None)), 1)  # type: ignore[call-arg]
        exchange = Exchange({"type": "http", "method": "GET", "path": "/about"}, headers, body, send)
        await exchange.refuse(ZeroDivisionError(), exchange.send)

    logging.getLogger("digits").propagate = True
    logs.request_id.set("a-1")
    asyncio.run(refuse())
    line, *traceback = logs.formatter("text").format(caplog.records[0]).splitlines()
    assert line.endswith("GET /about failed (request a-1)") and traceback[-1] == "ZeroDivisionError"
    entry = json.loads(logs.formatter("json").format(caplog.records[0]))
    assert entry["request_id"] == "a-1" and entry["exception"].endswith("ZeroDivisionError")
    assert sent[0]["status"] == 500 and (b"x-request-id", b"a-1") in sent[0]["headers"]
    assert sent[1]["body"] == b'{"error":"the service failed at this request"}'
