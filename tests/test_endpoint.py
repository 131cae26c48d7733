"""What the commands make of the endpoint's answers, also where something else answers in its place."""

import httpx
import pytest

from ops import endpoint


def response(status: int, body: str) -> httpx.Response:
    return httpx.Response(status, text=body, request=httpx.Request("POST", "http://127.0.0.1:3000/classify"))


def test_an_answer_is_its_fields_and_a_refusal_its_sentence() -> None:
    assert endpoint.read(response(200, '{"digit": 7}')) == {"digit": 7}
    with pytest.raises(ValueError, match=r"^images is 3; expected rows$"):
        endpoint.read(response(422, '{"error": "images is 3; expected rows"}'))


@pytest.mark.parametrize(
    ("status", "body"),
    [(502, "<html>Bad Gateway</html>"), (404, '{"detail": "Not Found"}'), (404, "[]"), (200, "<html>")],
)
def test_what_is_no_endpoint_is_said(status: int, body: str) -> None:
    with pytest.raises(ConnectionError, match=rf"http://127.0.0.1:3000/ answered {status}, .*DIGITS_SERVICE_PORT"):
        endpoint.read(response(status, body))
