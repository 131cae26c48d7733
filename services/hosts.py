"""Which hosts and origins a request may name: what keeps pages of other sites from using the service through a visitor's browser."""

import socket
from ipaddress import ip_address

from starlette.exceptions import HTTPException
from starlette.types import Scope

from digits.errors import quote
from digits.settings import Settings

Headers = dict[bytes, bytes]

# They change nothing, and the browser does not give their responses to a page of another origin.
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
# Sent twice, such a header may be read differently by a proxy and by this service.
SINGLE_HEADERS = {
    *(b"host", b"origin", b"sec-fetch-site", b"content-type", b"content-length", b"content-encoding"),
    *(b"authorization", b"x-api-key", b"x-client-id", b"x-request-id"),
}


# A name has up to 253 characters (RFC 1035, 2.3.4), and a port may follow.
MAX_HOST_BYTES = 260


class Hosts:
    """The names of this service: localhost, IP addresses, the host that it binds to, the machine's name, and those of the settings.

    In DNS rebinding the browser sends the attacker's host name in Host. A Host that is an IP address cannot come from that, so all
    addresses are accepted. A name of the settings may be `*` or begin with `*.`.
    """

    def __init__(self, settings: Settings) -> None:
        names = {"localhost", settings.host.lower(), socket.gethostname().lower(), *settings.allowed_hosts}
        self._domains = tuple(name[1:] for name in names if name.startswith("*"))
        self._names, self._origins = names, {origin.encode() for origin in settings.cors_origins}

    def includes(self, host: bytes) -> bool:
        """Whether the value of a Host header names this service, with or without a port."""
        if len(host) > MAX_HOST_BYTES:
            return False
        text = host.decode("latin-1").lower()
        before, _, port = text.rpartition(":")
        name = (before if port.isdecimal() else text).removesuffix(".")
        if name in self._names or name.endswith(self._domains):
            return True
        try:
            return bool(ip_address(name.removeprefix("[").removesuffix("]")))
        except ValueError:
            return False

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raises HTTPException 400 for a repeated header or none, 421 for the Host of another service, 403 for a page of another site."""
        if len(headers) < len(scope["headers"]):
            _check_repeated(scope)
        host = headers.get(b"host", b"")
        if host:
            if not self.includes(host):
                sentence = (
                    f"the host {quote(host.decode('latin-1'))} is not served here; name it in DIGITS_ALLOWED_HOSTS"
                )
                raise HTTPException(421, sentence)
        elif scope["http_version"] == "1.1":
            raise HTTPException(400, "the header Host is missing; send the name of the service")
        if scope["method"] not in SAFE_METHODS:
            self._check_origin(host, headers)

    def _check_origin(self, host: bytes, headers: Headers) -> None:
        """Refuse what a page of another site sends, as `CrossOriginProtection` of Go 1.25 does; other programs send neither header.

        Sec-Fetch-Site, which browsers send over HTTPS and to this machine, tells even where a proxy changes Host.
        """
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if site in (b"same-origin", b"none") or origin in self._origins or b"*" in self._origins:
            return
        if site is not None or (origin is not None and origin.partition(b"://")[2].lower() != host.lower()):
            sender = quote(origin.decode("latin-1")) if origin else "another site"
            advice = "name its origin in DIGITS_CORS_ORIGINS"
            raise HTTPException(403, f"pages of {sender} may not send requests to this service; {advice}")


def _check_repeated(scope: Scope) -> None:
    """Raises HTTPException 400 for a header that must not be sent twice."""
    names = [name for name, _ in scope["headers"]]
    for name in SINGLE_HEADERS:
        if names.count(name) > 1:
            raise HTTPException(400, f"the header {name.decode()} was sent {names.count(name)} times; send it once")
