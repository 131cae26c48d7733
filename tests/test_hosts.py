"""Hosts and origins: what a browser sends for a page of another site, or under a name that stands for this machine, is refused."""

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from serving import Service, png
from starlette.exceptions import HTTPException

from digits.reference import Reference
from digits.settings import Settings
from services.hosts import Hosts


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]


@pytest.fixture
def hosts() -> Hosts:
    names = ["Digits.example.org", "*.example.net"]
    return Hosts(settings(host="me.local", allowed_hosts=names, cors_origins=["https://app.example"]))


def scope(host: str | None = "localhost", method: str = "POST", version: str = "1.1", **headers: str) -> dict[str, Any]:
    named = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    sent = [(name.encode(), value.encode("latin-1")) for name, value in named.items() if value is not None]
    return {"method": method, "http_version": version, "headers": sent}


def refusal(check: Callable[..., None], request: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(HTTPException) as caught:
        check(request, dict(request["headers"]))
    return caught.value.status_code, caught.value.detail


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost",
            "localhost:3000",
            "LOCALHOST",
            "localhost.",
            "127.0.0.1:3000",
            "127.8.9.1",
            "[::1]",
            "[::1]:3000",
        ),
        *("10.0.0.7:3000", "192.0.2.7", "[2001:db8::1]:80", "me.local:3000", "digits.example.org", "a.example.net"),
        socket.gethostname(),
    ],
)
def test_the_service_has_these_names(host: str, hosts: Hosts) -> None:
    assert hosts.includes(host.encode())


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:3000",
            "localhost.evil.example",
            "localhost:3000.evil.example",
            "evil.localhost",
        ),
        *("127.0.0.1.evil.example", "127.0.0.1.nip.io", "example.net", "evilexample.net", "digits.example.org.evil"),
        *(
            "0x7f.1",
            "2130706433",
            "localhost@evil.example",
            "localhost/evil",
            "loc\xe4lhost",
            "[::1].evil",
            " ",
            ":3000",
        ),
    ],
)
def test_other_hosts_are_refused(host: str, hosts: Hosts) -> None:
    assert not hosts.includes(host.encode("latin-1"))
    status, sentence = refusal(hosts.check, scope(host, "GET"))
    assert status == 421 and "is not served here; name it in DIGITS_ALLOWED_HOSTS" in sentence


def test_a_long_host_takes_no_time_and_is_not_kept(hosts: Hosts) -> None:
    started = time.process_time()
    for number in range(1000):
        assert not hosts.includes(b"%d." % number * 16_000)
    assert time.process_time() - started < 1
    assert hosts.includes(b"a" * 250 + b".localhost") is False and hosts.includes(b"localhost:65535")


def test_a_star_stands_for_all_hosts() -> None:
    assert Hosts(settings(allowed_hosts=["*"])).includes(b"anything.example")


@pytest.mark.parametrize("name", ["https://digits.example.org", "digits.example.org:3000", "a b", "", "a.*.b", "*a.b"])
def test_a_name_with_scheme_or_port_is_refused_by_the_settings(name: str) -> None:
    with pytest.raises(ValueError, match="expected a host without scheme and port"):
        settings(allowed_hosts=[name])


def test_a_request_without_a_host_is_of_http_1_0(hosts: Hosts) -> None:
    for host in ("", None):
        hosts.check(scope(host, version="1.0"), {})
        assert refusal(hosts.check, scope(host))[0] == 400


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({}, False),  # curl, and other programs
        ({"origin": "http://localhost"}, False),
        ({"origin": "https://localhost"}, False),  # behind a proxy with TLS
        ({"origin": "http://localhost:8000"}, True),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "null"}, True),  # a sandboxed frame, a file
        ({"origin": "https://app.example"}, False),
        ({"origin": "https://app.example", "sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-origin", "origin": "https://public.name"}, False),  # a proxy that changes Host
        ({"sec_fetch_site": "none"}, False),
        ({"sec_fetch_site": "cross-site"}, True),
        ({"sec_fetch_site": "same-site"}, True),  # another port of this machine
        ({"sec_fetch_site": "same-site", "origin": "http://localhost:8000"}, True),
        ({"sec_fetch_site": "cross-site", "origin": "https://evil.example"}, True),
    ],
)
def test_what_a_page_of_another_origin_sends_is_refused(
    headers: dict[str, str], is_refused: bool, hosts: Hosts
) -> None:
    request = scope(**headers)
    if not is_refused:
        hosts.check(request, dict(request["headers"]))
    else:
        status, sentence = refusal(hosts.check, request)
        assert status == 403 and "DIGITS_CORS_ORIGINS" in sentence
    for method in ("GET", "HEAD", "OPTIONS"):
        hosts.check(request | {"method": method}, dict(request["headers"]))


def test_a_header_that_programs_would_read_differently_is_sent_once(hosts: Hosts) -> None:
    for name in (b"host", b"origin", b"x-api-key", b"content-type"):
        request = scope() | {"headers": [(b"host", b"localhost"), (name, b"localhost"), (name, b"evil.example")]}
        status, sentence = refusal(hosts.check, request)
        assert status == 400 and f"the header {name.decode()} was sent" in sentence
    request = scope() | {"headers": [(b"host", b"localhost"), (b"accept", b"a"), (b"accept", b"b")]}
    hosts.check(request, dict(request["headers"]))


# Over HTTP


FOREIGN = {
    "rebound host": {"Host": "evil.example"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "another port": {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8000"},
    "foreign origin": {"Origin": "https://evil.example"},
    "no origin": {"Origin": "null"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_nothing_is_answered_or_logged_for_another_site(name: str, service: Service, sample: Reference) -> None:
    image = sample.images[0]
    one = service.client.post("/classify", json={"images": image.tolist()}).json()["id"]
    service.client.get(f"/predictions/{one}")  # waits until it is written
    before = len(service.window())
    requests: dict[str, dict[str, Any]] = {
        "/classify": {"json": {"images": image.tolist()}},
        "/classify_file": {"files": {"file": ("digit.png", png(image))}},
        "/read": {"files": {"file": ("number.png", png(image))}},
        "/explain": {"json": {"image": image.tolist()}},
        "/classify_bulk": {"content": image.tobytes()},
        "/feedback": {"json": {"id": one, "digit": 5, "source": "audit"}},
        "/about": {"json": {}},
    }
    for path, content in requests.items():
        response = service.client.post(path, headers=FOREIGN[name], **content)
        assert response.status_code == (421 if name == "rebound host" else 403), path
        assert set(response.json()) == {"error"}
    assert service.client.get(f"/predictions/{one}").json()["label"] is None
    assert len(service.window()) == before
    for path in ("/", "/about", "/metrics", "/livez", "/nothing", "/static_content/", "/page"):
        status = service.client.get(path, headers={"Host": "evil.example"}).status_code
        assert status == 421, path


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.7", "localhost"])
@pytest.mark.parametrize(
    "path", ["/page", "/page/", "/static_content", "/static_content/", "//evil", "/page//evil", "/livez/", "/classify/"]
)
def test_nothing_redirects(path: str, host: str, service: Service) -> None:
    for method in ("GET", "HEAD", "POST"):
        response = service.client.request(
            method, f"{str(service.client.base_url).rstrip('/')}{path}", headers={"Host": host}
        )
        assert 400 <= response.status_code < 500 and "location" not in response.headers, response.headers
        assert method == "HEAD" or set(response.json()) == {"error"}
