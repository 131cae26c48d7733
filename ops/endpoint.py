"""What the endpoint says to the commands that ask it."""

from typing import Any

import httpx


class Refused(ValueError):
    """The endpoint does not answer this request, and says why in a sentence."""


def read(response: httpx.Response) -> dict[str, Any]:
    """The fields of an answer; raises Refused, or ConnectionError for what comes from no endpoint of ours."""
    try:
        fields = response.json()
        sentence = str(fields["error"]) if response.is_error else ""
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionError(
            f"{response.url.copy_with(path='/')} answered {response.status_code}, and not as the endpoint does; "
            "set DIGITS_HOST and DIGITS_SERVICE_PORT to where it is"
        ) from error
    if response.is_error:
        raise Refused(sentence)
    found: dict[str, Any] = fields
    return found
