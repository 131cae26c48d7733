"""Keys at the door: who is let in where, how often, and what becomes of it when keys are revoked or the database is away."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from conftest import Files, serve_registry
from serving import ROOT, Service, png, serving
from starlette.exceptions import HTTPException
from starlette.requests import Request

from digits.reference import Reference
from digits.settings import load_settings
from digits.storage import api_keys, database
from digits.storage.api_keys import ApiKey
from ops import bootstrap, process_environment, processes
from services.access import OPEN_ROUTES, REQUIRED_ROLES, Access, Auth, client_of
from services.middleware import BENTOML_PATHS
from services.routes import router

LOCAL, PUBLIC, WILDCARD = ("127.0.0.1", 3000), ("192.0.2.7", 3000), ("0.0.0.0", 3000)


def scope(
    path: str = "/classify", key: str = "", server: tuple[str, int] = PUBLIC, client: tuple[str, int] | None = PUBLIC
) -> dict[str, object]:
    headers = [(b"x-api-key", key.encode())] if key else []
    return {"path": path, "server": server, "client": client, "headers": headers}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/digits.db"


def opened(url: str, auth: Auth = "loopback", workers: int = 1) -> Access:
    access = Access(url, auth, rate_per_minute=6000, workers=workers)
    access._stop.set()  # one look
    access._run()
    return access


def refusal(access: Access, request: dict[str, object]) -> HTTPException:
    with pytest.raises(HTTPException) as caught:
        access.admit(request)
    return caught.value


def test_a_key_has_256_random_bits_and_only_its_hash_is_kept(url: str, tmp_path: Path) -> None:
    engine = database.connect(url)
    made = [api_keys.create(engine, f"app {number}", ["predict"]) for number in range(3)]
    assert len(set(made)) == 3 and all(re.fullmatch(r"digits_[\w-]{43}", key) for key in made)
    engine.dispose()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"app 2" in files and not any(key[7:].encode() in files for key in made)
    assert list(api_keys.by_hash(engine)) == [api_keys.digest(key.encode()) for key in made]


@pytest.mark.parametrize(
    ("name", "roles", "sentence"),
    [
        ("", ["predict"], "the name is ''"),
        ("ward/2", ["predict"], "the name is 'ward/2'"),
        ("x" * 65, ["predict"], "1 to 64"),
        (" app", ["predict"], "without blanks"),
        ("a\nb", ["predict"], "printable"),
        ("app", [], "the roles are none"),
        ("app", ["predict", "root"], "predict, root; expected some of predict, feedback, admin"),
        ("taken", ["predict"], "a key 'taken' exists or was revoked"),
    ],
)
def test_a_wrong_name_or_role_is_refused(name: str, roles: list[str], sentence: str, url: str) -> None:
    engine = database.connect(url)
    api_keys.create(engine, "taken", ["admin"])
    api_keys.revoke(engine, "taken")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        api_keys.create(engine, name, roles)


def test_every_route_is_either_open_or_for_a_role() -> None:
    first = {"/" + route.path.split("/")[1] for route in router.routes} | BENTOML_PATHS  # type: ignore[attr-defined]
    assert first == REQUIRED_ROLES.keys() | OPEN_ROUTES and not REQUIRED_ROLES.keys() & OPEN_ROUTES


@pytest.mark.parametrize("role", ["none", *api_keys.ROLES])
@pytest.mark.parametrize(
    "path", [*sorted({*REQUIRED_ROLES, *OPEN_ROUTES}), "/another", "/page/page.js", "/predictions/1", "//classify", "*"]
)
def test_a_role_opens_what_it_stands_for(path: str, role: str, url: str, tmp_path: Path) -> None:
    key = "" if role == "none" else api_keys.create(database.connect(url), "app", [role])
    access = opened(url)
    first = "/" + path.lstrip("/").split("/")[0]
    needs = REQUIRED_ROLES.get(first, "admin")
    if first in OPEN_ROUTES:
        assert access.admit(scope(path, key)) is None
    elif role == "none":
        assert refusal(access, scope(path)).status_code == 401
    elif role in (needs, "admin") or needs is None:
        admitted = access.admit(scope(path, key))
        assert admitted and admitted.name == "app"
    else:
        refused = refusal(access, scope(path, key))
        assert refused.status_code == 403 and f"needs the role {needs}" in refused.detail


def test_wrong_keys_get_401_and_revoked_ones_403(url: str, tmp_path: Path) -> None:
    engine = database.connect(url)
    key = api_keys.create(engine, "app", ["predict"])
    access = opened(url)
    for wrong in (key[:-1], key + "x", key.upper(), api_keys.digest(key.encode()), "digits_", "\x00"):
        refused = refusal(access, scope(key=wrong))
        assert (refused.status_code, (refused.headers or {})["WWW-Authenticate"]) == (401, "Bearer")
        assert wrong not in refused.detail
    api_keys.revoke(engine, "app")
    access._run()
    refused = refusal(access, scope(key=key))
    assert refused.status_code == 403 and "'app' was revoked" in refused.detail
    with pytest.raises(LookupError, match="no key 'nobody'"):
        api_keys.revoke(engine, "nobody")


@pytest.mark.parametrize("header", [b"Bearer %s", b"bearer %s", b"BEARER   %s "])
def test_a_key_may_come_as_a_bearer_token(header: bytes, url: str, tmp_path: Path) -> None:
    key = api_keys.create(database.connect(url), "app", ["predict"]).encode()
    admitted = opened(url).admit({**scope(), "headers": [(b"authorization", header % key)]})
    assert admitted and admitted.name == "app"


@pytest.mark.parametrize(
    ("auth", "server", "client", "needed"),
    [
        ("loopback", LOCAL, LOCAL, False),
        ("loopback", ("::1", 3000), None, False),
        ("loopback", PUBLIC, PUBLIC, True),
        ("loopback", PUBLIC, LOCAL, True),  # as a forged X-Forwarded-For would have it
        ("loopback", WILDCARD, LOCAL, False),
        ("loopback", WILDCARD, PUBLIC, True),
        ("loopback", ("::", 3000), ("::ffff:127.0.0.1", 4000), False),
        ("loopback", WILDCARD, None, True),
        ("loopback", None, None, True),
        ("required", LOCAL, LOCAL, True),
        ("off", PUBLIC, PUBLIC, False),
    ],
)
def test_a_key_is_required_from_other_machines(
    auth: Auth, server: tuple[str, int], client: tuple[str, int] | None, needed: bool, url: str
) -> None:
    access = opened(url, auth)
    if needed:
        assert refusal(access, scope(server=server, client=client)).status_code == 401
    else:
        assert access.admit(scope(server=server, client=client)) is None


def test_the_database_away_locks_out_no_known_key_and_lets_no_unknown_one_in(url: str, tmp_path: Path) -> None:
    engine = database.connect(url)
    key = api_keys.create(engine, "app", ["predict"])
    access = opened(url)
    engine.dispose()
    for file in tmp_path.glob("digits.db*"):
        file.unlink()
    (tmp_path / "digits.db").mkdir()  # which no SQLite opens
    access._run()
    assert access.admit(scope(key=key))
    assert refusal(access, scope(key="digits_x")).status_code == 401
    fresh = opened(url)
    refused = refusal(fresh, scope(key=key))
    assert refused.status_code == 503 and (refused.headers or {})["Retry-After"] == "2"


def test_a_key_may_ask_as_often_as_its_rate_and_not_once_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    engine = database.connect(url)
    key, other = (api_keys.create(engine, name, ["predict"], rate_per_minute=6) for name in ("app", "other"))
    access = opened(url)
    for _ in range(6):
        assert access.admit(scope(key=key))
        now += 1
    refused = refusal(access, scope(key=key))
    assert refused.status_code == 429 and "6 times a minute" in refused.detail
    assert (refused.headers or {})["Retry-After"] == "54"
    assert access.admit(scope(key=other))
    now += 54.5
    assert access.admit(scope(key=key))
    assert refusal(access, scope(key=key)).status_code == 429


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_set_locks_out_no_key_and_lets_none_in(
    days: int, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, passed = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: passed)
    key = api_keys.create(database.connect(url), "app", ["predict"], rate_per_minute=2)
    access = opened(url)
    assert access.admit(scope(key=key))
    now += days * 86_400
    assert access.admit(scope(key=key))
    refused = refusal(access, scope(key=key))
    assert (refused.status_code, refused.headers or {}) == (429, {"Retry-After": "60"})
    passed += 60
    assert access.admit(scope(key=key)) and access.admit(scope(key=key))


@pytest.mark.parametrize(("rate", "workers", "allowed"), [(9, 2, 4), (1, 4, 1)])
def test_workers_divide_the_rate(rate: int, workers: int, allowed: int, url: str) -> None:
    key = api_keys.create(database.connect(url), "app", ["predict"], rate_per_minute=rate)
    access = opened(url, workers=workers)
    for _ in range(allowed):
        assert access.admit(scope(key=key))
    assert refusal(access, scope(key=key)).status_code == 429


def request_from(key: str, *ids: bytes) -> Request:
    """A request with these X-Client-ID headers, admitted with the key of this name."""
    known = ApiKey(name=key, hash="", roles="predict", created_at=datetime.now(UTC)) if key else None
    headers = [(b"x-client-id", id) for id in ids]
    return Request({"type": "http", "headers": headers, "state": {"key": known}})


@pytest.mark.parametrize(
    ("key", "ids", "client"),
    [
        ("", (), ""),
        ("", (b"",), ""),
        ("", (b"ann",), "ann"),
        ("", (b"form 7, box 3",), "form 7, box 3"),
        ("", (b"x" * 64,), "x" * 64),
        ("app", (), "app"),
        ("app", (b"",), "app"),
        ("app", (b"ann",), "app/ann"),
        ("app", (b"x" * 64,), f"app/{'x' * 60}"),
        ("k" * 64, (b"ann",), "k" * 64),
    ],
)
def test_the_client_is_the_key_the_header_or_both(key: str, ids: tuple[bytes, ...], client: str) -> None:
    assert client_of(request_from(key, *ids)) == client


@pytest.mark.parametrize("key", ["", "app"])
@pytest.mark.parametrize("id", [b"x" * 65, "zoë".encode(), b"a\tb", b"\x7f"])
def test_another_client_id_is_refused_by_a_sentence(key: str, id: bytes) -> None:
    with pytest.raises(HTTPException, match=r"X-Client-ID is .*; expected 1 to 64 printable ASCII") as caught:
        client_of(request_from(key, id))
    assert caught.value.status_code == 422


# Over HTTP


@pytest.fixture(scope="module")
def locked(champion_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of two workers that wants keys, and answers a page of another origin."""
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    home = tmp_path_factory.mktemp("locked")
    database.connect(f"sqlite:///{home}/digits.db").dispose()
    origins = '["https://app.example"]'
    with serving(
        home, registry, DIGITS_AUTH="required", DIGITS_SERVICE_WORKERS="2", DIGITS_CORS_ORIGINS=origins
    ) as one:
        one.wait_for(lambda: one.status("/readyz") == 200)
        yield one
    server.shutdown()
    server.server_close()


def key_for(service: Service, name: str, *roles: str, rate: int | None = None) -> dict[str, str]:
    engine = database.connect(f"sqlite:///{service.home}/digits.db")
    made = {"X-API-Key": api_keys.create(engine, name, roles, rate)}
    engine.dispose()
    settled(service, made, lambda status: status != 401)
    return made


def settled(service: Service, headers: dict[str, str], wanted: object) -> None:
    """Until every worker says so: each connection goes to one of them."""
    agreed, deadline = 0, time.monotonic() + 60
    while agreed < 12:
        assert time.monotonic() < deadline
        status = httpx.get(f"{service.client.base_url}/about", headers=headers, timeout=30).status_code
        agreed = agreed + 1 if wanted(status) else 0  # type: ignore[operator]
        time.sleep(0 if agreed else 0.2)


pytest_slow = pytest.mark.slow


@pytest_slow
def test_roles_hold_on_every_route_of_the_running_service(locked: Service, sample: Reference) -> None:
    made = {role: key_for(locked, f"holder of {role}", role) for role in api_keys.ROLES}
    image = sample.images[0]
    answer = locked.client.post("/classify", json={"images": image.tolist()}, headers=made["predict"]).json()
    asked: dict[str, tuple[str, str, dict[str, object]]] = {
        "classify": ("POST", "/classify", {"json": {"images": image.tolist()}}),
        "classify_file": ("POST", "/classify_file", {"content": png(image)}),
        "read": ("POST", "/read", {"content": (ROOT / "docs" / "number.png").read_bytes()}),
        "explain": ("POST", "/explain", {"json": {"image": image.tolist()}}),
        "classify_bulk": ("POST", "/classify_bulk", {"content": image.tobytes()}),
        "feedback": ("POST", "/feedback", {"json": {"id": answer["id"], "digit": 3}}),
        "withdraw": ("POST", "/withdraw", {"json": {"id": answer["id"]}}),
        "label_queue": ("GET", "/label_queue", {}),
        "predictions": ("GET", f"/predictions/{answer['id']}", {}),
        "samples": ("GET", "/samples", {}),
        "about": ("GET", "/about", {}),
        "metrics": ("GET", "/metrics", {}),
    }
    assert {f"/{name}" for name in asked} == REQUIRED_ROLES.keys()
    for name, (method, path, content) in asked.items():
        needed = REQUIRED_ROLES[f"/{name}"]
        for role, headers in made.items():
            status = locked.client.request(method, path, headers=headers, **content).status_code  # type: ignore[arg-type]
            assert status == (200 if role in (needed, "admin") or needed is None else 403), (name, role)
        refused = locked.client.request(method, path, **content)  # type: ignore[arg-type]
        assert refused.status_code == 401 and "an API key is needed" in refused.json()["error"]
        wrong = locked.client.request(method, path, headers={"X-API-Key": "digits_wrong"}, **content)  # type: ignore[arg-type]
        assert wrong.status_code == 401 and "no valid API key" in wrong.json()["error"]
    assert locked.status("/livez") == locked.status("/readyz") == locked.status("/") == locked.status("/docs") == 200
    assert locked.status("/label") == 200
    assert locked.status("/page/page.js") == locked.status("/openapi.json") == 200
    assert locked.status("/nothing") == 401


@pytest_slow
def test_a_large_body_without_a_key_is_refused_and_the_connection_stands(locked: Service) -> None:
    for _ in range(3):
        assert locked.client.post("/classify_bulk", content=b"0" * 5_000_000).status_code == 401


@pytest_slow
def test_a_revoked_key_is_refused_within_seconds_by_every_worker(locked: Service) -> None:
    headers = key_for(locked, "to be revoked", "predict")
    engine = database.connect(f"sqlite:///{locked.home}/digits.db")
    api_keys.revoke(engine, "to be revoked")
    began = time.monotonic()
    settled(locked, headers, lambda status: status == 403)
    assert time.monotonic() - began < 30  # 2 s and the requests, on a machine that may be busy


@pytest_slow
def test_all_workers_together_keep_the_rate(locked: Service) -> None:
    headers = key_for(locked, "slower", "predict", rate=40)
    statuses = [httpx.get(f"{locked.client.base_url}/about", headers=headers, timeout=30) for _ in range(60)]
    counts = [response.status_code for response in statuses]
    assert 8 <= counts.count(200) <= 40 and set(counts) == {200, 429}
    assert all(1 <= int(one.headers["Retry-After"]) <= 60 for one in statuses if one.status_code == 429)


@pytest_slow
def test_the_source_of_feedback_is_the_keys_name(locked: Service, sample: Reference) -> None:
    headers = key_for(locked, "alice", "predict", "feedback")
    response = locked.client.post("/classify", json={"images": sample.images[0].tolist()}, headers=headers)
    word = {"id": response.json()["id"], "digit": 8, "source": "audit"}
    assert locked.client.post("/feedback", json=word, headers=headers).json()["source"] == "alice"


@pytest_slow
def test_an_application_with_one_key_tells_its_writers_apart(locked: Service, sample: Reference) -> None:
    headers, expected = key_for(locked, "forms", "predict"), {}
    for writer, client in (("", "forms"), ("ann", "forms/ann"), ("bob", "forms/bob")):
        sent = {**headers, "X-Client-ID": writer} if writer else headers
        answer = locked.client.post("/classify", json={"images": sample.images[0].tolist()}, headers=sent).json()
        expected[answer["id"]] = client
    locked.wait_for(lambda: set(expected) <= set(locked.window().ids))
    window = locked.window()
    logged = dict(zip(window.ids, window.clients, strict=True))
    assert {id: logged[id] for id in expected} == expected


@pytest_slow
def test_pages_of_the_named_origins_may_ask_and_no_others(locked: Service, service: Service) -> None:
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key, x-client-id"}
    for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
        answer = locked.client.options("/classify", headers={"Origin": origin, **asking})
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert (answer.status_code == 200) == (allowed is not None)
        refused = locked.client.post("/classify", headers={"Origin": origin}, json={})
        assert refused.status_code == (401 if allowed else 403)
        assert refused.headers.get("access-control-allow-origin") == allowed
        assert answer.headers["x-request-id"] and refused.headers["x-request-id"]
    off = service.client.options("/classify", headers={"Origin": "https://app.example", **asking})
    assert off.status_code == 405 and "access-control-allow-origin" not in off.headers


# On the command line


@pytest.mark.parametrize(("host", "auth"), [("0.0.0.0", "required"), ("192.0.2.7", None), ("::", None)])
def test_up_refuses_to_serve_other_machines_without_a_key(
    host: str, auth: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("DIGITS_HOST", host)
    if auth:
        monkeypatch.setenv("DIGITS_AUTH", auth)
    with pytest.raises(PermissionError, match=rf"DIGITS_HOST is {host}.*digits keys create.*DIGITS_AUTH=off"):
        bootstrap.up(load_settings())
    engine = database.connect(load_settings().database_url)
    api_keys.create(engine, "app", ["predict"])
    bootstrap.require_api_key(load_settings())
    api_keys.revoke(engine, "app")
    with pytest.raises(PermissionError):
        bootstrap.require_api_key(load_settings())
    monkeypatch.setenv("DIGITS_AUTH", "off")
    bootstrap.require_api_key(load_settings())
    monkeypatch.delenv("DIGITS_AUTH")
    monkeypatch.setenv("DIGITS_HOST", "127.0.0.1")
    bootstrap.require_api_key(load_settings())


def test_only_the_service_leaves_this_machine_unless_all_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGITS_HOST", "192.0.2.7")
    assert bound() == {"service": "192.0.2.7", "mlflow": "127.0.0.1", "prefect": "127.0.0.1", "reports": "127.0.0.1"}
    assert load_settings().mlflow_tracking_uri == "http://127.0.0.1:5000"
    monkeypatch.setenv("DIGITS_AUTH", "off")
    assert set(bound().values()) == {"192.0.2.7"}


def bound() -> dict[str, str]:
    """The address that each server is told to bind to."""
    settings = load_settings()
    commands = {process.name: process.command for process in processes.processes(settings) if process.port}
    told = {"service": process_environment.of_clients(settings)["DIGITS_HOST"]}
    return told | {name: command[command.index("--host") + 1] for name, command in commands.items() if name not in told}


def test_keys_are_made_listed_and_revoked_on_the_command_line(tmp_path: Path) -> None:
    def digits(*arguments: str) -> tuple[int, str]:
        environment = {**os.environ, "DIGITS_HOME": str(tmp_path), "COLUMNS": "150"}
        command = [sys.executable, "-m", "ops", "keys", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).strip()

    code, key = digits("create", "app", "--role", "predict", "--role", "feedback", "--rate", "90")
    assert code == 0 and re.fullmatch(r"digits_[\w-]{43}", key)
    known = api_keys.by_hash(database.connect(f"sqlite:///{tmp_path}/digits.db"))[api_keys.digest(key.encode())]
    assert (known.name, known.roles, known.rate_per_minute) == ("app", "feedback predict", 90)
    assert digits("create", "app", "--role", "admin") == (
        1,
        "digits: a key 'app' exists or was revoked (see `digits keys list`); choose another name",
    )
    assert digits("revoke", "nobody") == (1, "digits: there is no key 'nobody'; see them with `digits keys list`")
    assert digits("revoke", "app") == (0, "")
    code, table = digits("list")
    assert code == 0 and "feedback, predict" in table and key not in table and len(re.findall(r"20\d\d-", table)) == 2
