"""Who may ask for what, and how often: API keys, checked in memory before every route.

A thread reads all keys every two seconds. So a check costs a hash and a look into a dictionary, whoever guesses keys never reaches
the database, a revoked key is refused within seconds by every worker, and while the database is away the known keys go on.
"""

import logging
import mmap
import os
import threading
import time
from math import ceil
from pathlib import Path
from typing import Literal

from starlette.exceptions import HTTPException
from starlette.types import Scope

from digits.storage import api_keys, database
from digits.storage.api_keys import ApiKey, Role

log = logging.getLogger("digits.service")

REFRESH_SECONDS = 2.0
Auth = Literal["off", "loopback", "required"]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
# What a path needs: a role, or None for any key. A path that is not here is for `admin`, so that none is open by oversight.
NEEDS: dict[str, Role | None] = {
    "/classify": "predict",
    "/classify_file": "predict",
    "/classify_bulk": "predict",
    "/samples": "predict",
    "/feedback": "feedback",
    "/predictions": "feedback",
    "/about": None,
    "/metrics": "admin",
}
# The page, which asks for a key, and descriptions of the interface: they are the same in every installation.
OPEN = {"/", "/draw", "/page", "/docs", "/swagger", "/openapi.json", "/docs.json"}


class Access:
    """The keys as this worker knows them, held open from the service's start to its end.

    With `auth` `loopback`, connections to this machine's loopback address are unauthenticated; all others require a key.
    """

    def __init__(self, url: str, rates: Path, auth: Auth, rate_per_minute: int) -> None:
        self._url, self._auth, self._rate_per_minute = url, auth, rate_per_minute
        self._keys: dict[str, ApiKey] | None = None  # None until they were read once
        self._limits = Limits(rates)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)

    def start(self) -> None:
        if self._auth != "off":
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def admit(self, scope: Scope) -> ApiKey | None:
        """The key of the request, None where it needs none; raises HTTPException 401, 403, 429, or 503 before keys are known."""
        if self._auth == "off" or (self._auth == "loopback" and _is_local(scope)):
            return None
        path: str = "/" + scope["path"].lstrip("/").partition("/")[0]
        if path in OPEN:
            return None
        key = self._find(_sent(scope))
        role = NEEDS.get(path, "admin")
        if not key.may(role):
            raise HTTPException(403, f"the key {key.name!r} may not do this; {path[:40]} needs the role {role}")
        wait = self._limits.take(key.number, key.rate_per_minute or self._rate_per_minute)
        if wait:
            rate = key.rate_per_minute or self._rate_per_minute
            sentence = f"the key {key.name!r} may ask {rate:,} times a minute; ask again in {wait} s"
            raise HTTPException(429, sentence, {"Retry-After": str(wait)})
        return key

    def _find(self, sent: bytes) -> ApiKey:
        if self._keys is None:
            raise HTTPException(503, "the API keys have not been read yet; ask again in a moment", {"Retry-After": "2"})
        key = self._keys.get(api_keys.digest(sent)) if sent else None
        if key is None:
            sentence = "this is no valid API key" if sent else "an API key is needed"
            more = "; send one as X-API-Key or as Authorization: Bearer (`digits keys create` makes one)"
            raise HTTPException(401, sentence + more, {"WWW-Authenticate": "Bearer"})
        if key.revoked_at:
            raise HTTPException(403, f"the key {key.name!r} was revoked; ask who runs this service for another")
        return key

    def _run(self) -> None:
        engine, warning = None, ""
        while True:
            try:
                engine = engine or database.connect(self._url, busy_seconds=2)
                self._keys, warning = api_keys.by_hash(engine), ""
            except Exception as error:  # whatever it is: the thread must live to see it mended
                if not warning:
                    warning = (str(error) or repr(error)).splitlines()[0]
                    log.warning("the API keys cannot be read (%s); those known so far go on", warning)
            if self._stop.wait(REFRESH_SECONDS):
                return


class Limits:
    """When each key may ask again, in a file that all workers of this machine map: one double per number of a key.

    The generic cell rate algorithm (ITU-T I.371): a key that rested for a minute may spend its whole rate at once. Two workers that
    write at the same moment may let one request too many through.
    """

    def __init__(self, path: Path, most: int = 8192) -> None:
        self._most = most
        try:
            shared = _map(path, 8 * most)
        except OSError as error:
            log.warning("%s cannot be written (%s); each worker limits by itself", path, error.strerror)
            shared = mmap.mmap(-1, 8 * most)
        self._full_at = memoryview(shared).cast("d")

    def take(self, number: int, rate_per_minute: int) -> int:
        """0 where the key may ask now, else the seconds until it may."""
        now, slot, step = time.time(), number % self._most, 60 / rate_per_minute
        # no further ahead than the rate allows: a clock that was set back must not lock out for long
        ahead = min(max(self._full_at[slot] - now, 0.0), 60.0)
        if ahead > 60 - step + 1e-6:
            return max(1, ceil(ahead - 60 + step))
        self._full_at[slot] = now + ahead + step
        return 0


def _map(path: Path, size: int) -> mmap.mmap:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(
            descriptor, 0, size
        )  # a write to a page that the disk has no room for would kill the process
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _is_local(scope: Scope) -> bool:
    """Whether the connection came to this machine's own address, whichever addresses the server listens on."""
    server = scope.get("server")
    return server is not None and server[0] in LOOPBACK


def _sent(scope: Scope) -> bytes:
    """The key that the request brings, empty where it brings none."""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return bytes(value)
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:].strip())
    return b""
