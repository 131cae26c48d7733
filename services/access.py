"""Access control: API keys, roles and rate limits, checked in memory before every route.

A thread reads all keys every two seconds. So a check costs a hash and a dictionary lookup, guessed keys never reach the database,
every worker refuses a revoked key within seconds, and known keys keep working while the database is unreachable.
"""

import logging
import threading
import time
from collections import defaultdict, deque
from math import ceil
from typing import Literal

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from digits.errors import first_line, quote
from digits.storage import api_keys, database
from digits.storage.api_keys import ApiKey, Role
from digits.storage.labels import AUDITOR

log = logging.getLogger("digits.service")

REFRESH_SECONDS = 2.0
CLIENT_HEADER = "X-Client-ID"
MAX_CLIENT_LENGTH = 64
Auth = Literal["off", "loopback", "required"]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
# Granian reports the address that it is bound to instead of the connection's own.
UNSPECIFIED = {"0.0.0.0", "::"}
# The role that a route requires, or None for any key. A route that is missing here requires `admin`.
REQUIRED_ROLES: dict[str, Role | None] = {
    **dict.fromkeys(("/classify", "/classify_file", "/read", "/explain", "/classify_bulk", "/samples"), "predict"),
    **dict.fromkeys(("/feedback", "/withdraw", "/label_queue", "/predictions"), "feedback"),
    "/about": None,
    "/metrics": "admin",
}
# Health checks, the pages (which ask for a key), and descriptions of the API, which are the same in every installation.
OPEN_ROUTES = {
    *("/livez", "/readyz", "/healthz"),
    *("/", "/draw", "/label", "/page"),
    *("/docs", "/static_content", "/openapi.json", "/docs.json", "/schema.json"),
}


class Access:
    """The API keys as this worker knows them, from the start of the service to its end.

    With `auth` `loopback`, connections to this machine's loopback address are unauthenticated; all others require a key.
    A key's rate is divided by the number of workers, because each counts its own requests: over one connection, which stays
    with its worker, a key may send only that share.
    """

    def __init__(self, url: str, auth: Auth, rate_per_minute: int, workers: int = 1) -> None:
        self._url, self._auth, self._rate_per_minute, self._workers = url, auth, rate_per_minute, workers
        # None until they were read for the first time
        self._keys: dict[str, ApiKey] | None = None
        # when each key's requests of the last minute came, on the monotonic clock
        self._times: defaultdict[int, deque[float]] = defaultdict(deque)
        self._stop = threading.Event()
        if auth != "off":
            threading.Thread(target=self._run, name="api-keys", daemon=True).start()

    def stop(self) -> None:
        """Stop reading the keys."""
        self._stop.set()

    def admit(self, scope: Scope) -> ApiKey | None:
        """The key of the request, None where none is required; raises HTTPException 401, 403, 429, or 503 before keys are known."""
        if self._auth == "off" or (self._auth == "loopback" and _is_local(scope)):
            return None
        path = first_segment(scope["path"])
        if path in OPEN_ROUTES:
            return None
        key = self._find(_sent_key(scope))
        role = REQUIRED_ROLES.get(path, "admin")
        if not key.may(role):
            raise HTTPException(403, f"the key {key.name!r} may not do this; {path[:40]} needs the role {role}")
        self._check_rate(key)
        return key

    def _find(self, sent: bytes) -> ApiKey:
        if self._keys is None:
            raise HTTPException(503, "the API keys have not been read yet; ask again in a moment", {"Retry-After": "2"})
        key = self._keys.get(api_keys.digest(sent)) if sent else None
        if key is None:
            problem = "this is no valid API key" if sent else "an API key is needed"
            advice = "send one as X-API-Key or as Authorization: Bearer (`digits keys create` makes one)"
            raise HTTPException(401, f"{problem}; {advice}", {"WWW-Authenticate": "Bearer"})
        if key.revoked_at:
            raise HTTPException(403, f"the key {key.name!r} was revoked; ask who runs this service for another")
        return key

    def _check_rate(self, key: ApiKey) -> None:
        rate = key.rate_per_minute or self._rate_per_minute
        limit, now = max(1, rate // self._workers), time.monotonic()
        times = self._times[key.number]
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) < limit:
            times.append(now)
            return
        # a clock that is set neither lengthens nor shortens the wait
        wait = max(1, ceil(times[len(times) - limit] + 60 - now))
        sentence = f"the key {key.name!r} may ask {rate:,} times a minute; ask again in {wait} s"
        raise HTTPException(429, sentence, {"Retry-After": str(wait)})

    def _run(self) -> None:
        engine, warning = None, ""
        while True:
            try:
                engine = engine or database.connect(self._url, busy_seconds=2)
                self._keys, warning = api_keys.by_hash(engine), ""
            # The thread must survive every error, so that it sees the database return.
            except Exception as error:
                if not warning:
                    warning = first_line(error)
                    log.warning("the API keys cannot be read (%s); the keys known so far stay valid", warning)
            if self._stop.wait(REFRESH_SECONDS):
                return


def first_segment(path: str) -> str:
    """The part of a path that tells one route from another."""
    return "/" + path.lstrip("/").partition("/")[0]


def is_auditor(key: ApiKey | None) -> bool:
    """Whether labels under this key are an auditor's: it is named `audit`, or none is required."""
    return key is None or key.name == AUDITOR


def client_of(request: Request) -> str:
    """Who sends the images of a request: the name of the API key, the client's own X-Client-ID, both as `key/id`, or "".

    An application with one key tells its writers apart by the header. Raises HTTPException 422 unless that is printable ASCII of at
    most 64 characters; what follows the 64th of `key/id` is cut off.
    """
    key: ApiKey | None = request.state.key
    id = request.headers.get(CLIENT_HEADER, "")
    if not id:
        return key.name if key else ""
    if len(id) > MAX_CLIENT_LENGTH or not (id.isascii() and id.isprintable()):
        expected = f"1 to {MAX_CLIENT_LENGTH} printable ASCII characters"
        raise HTTPException(422, f"{CLIENT_HEADER} is {quote(id)}; expected {expected}")
    return f"{key.name}/{id}"[:MAX_CLIENT_LENGTH] if key else id


def _is_local(scope: Scope) -> bool:
    """Whether the connection came to the loopback address, whichever addresses the server is bound to.

    If the server is bound to a wildcard address, the client's address is used instead: only this machine has a loopback one.
    """
    server, client = (scope.get(end) or ("",) for end in ("server", "client"))
    return server[0] in LOOPBACK or (server[0] in UNSPECIFIED and client[0] in LOOPBACK)


def _sent_key(scope: Scope) -> bytes:
    """The key in the request's headers, empty without one."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return headers.get("x-api-key", bearer).encode("latin-1")
