"""Calls to the HTTP endpoint by the commands."""

from typing import Any

import httpx

from digits.settings import Settings


def open_client(settings: Settings) -> httpx.Client:
    return httpx.Client(base_url=settings.service_url, headers=settings.credentials, timeout=30)


def call(client: httpx.Client, method: str, route: str, **body: Any) -> dict[str, Any]:
    """The fields of the response; raises ValueError with the reason of a refusal, or ConnectionError."""
    try:
        response = client.request(method, route, **body)
    except httpx.TransportError as error:
        url = str(client.base_url).rstrip("/")
        raise ConnectionError(f"the endpoint does not answer at {url}; start it with `digits up`") from error
    return read(response)


def read(response: httpx.Response) -> dict[str, Any]:
    """The fields of a response; raises ValueError for a refusal, or ConnectionError when another server answered."""
    try:
        fields: dict[str, Any] = response.json()
        reason = str(fields["error"]) if response.is_error else ""
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionError(
            f"{response.url.copy_with(path='/')} answered {response.status_code}, but not as the endpoint does; "
            "set DIGITS_HOST and DIGITS_SERVICE_PORT to its address"
        ) from error
    if response.is_error:
        # The service's own sentence is for HTTP clients.
        if response.status_code == 401:
            reason = "the endpoint needs a valid API key; set DIGITS_API_KEY (`digits keys create NAME --role predict` makes one)"
        raise ValueError(reason)
    return fields
