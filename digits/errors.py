"""What error messages quote, shortened, and what reading damaged files raises."""

import json
import struct
import zipfile
import zlib
from typing import Any

# What Python, NumPy and Pillow raise on damaged files; MemoryError because a damaged header may request any size.
READ_ERRORS = (
    OSError, EOFError, ValueError, LookupError, MemoryError, RuntimeError, SyntaxError, TypeError, OverflowError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


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
