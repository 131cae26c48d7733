"""The first line of an exception, which every package quotes in its own errors."""


def first_line(error: BaseException) -> str:
    """At most 200 characters of a library's message, or else the exception's name; of SQLAlchemy, the driver's message."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
