"""What error messages quote: the first line of an exception, and a JSON value, shortened."""

import json
from typing import Any


def first_line(error: BaseException) -> str:
    """At most 200 characters of a library's message, or else the exception's name; of SQLAlchemy, the driver's message."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]


def quote(value: Any) -> str:
    """A JSON value, shortened, for an error message."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value[:40] if isinstance(value, str) else value, default=repr)
    return text if len(text) <= 44 else f"{text[:40]}..."
