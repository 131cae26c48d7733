"""MLflow as `digits up` starts it serves nobody without the login of its DIGITS_HOME, and everything with it."""

from collections.abc import Iterator

import httpx
import pytest

from bench import harness
from digits.settings import Settings
from models.registry import RegistryWriter
from models.registry_reader import RegistryReader, RegistryUnreachable

pytestmark = pytest.mark.timeout(600)
API = "/api/2.0/mlflow"
# Of each kind of route one: the API, artifacts, pages, and what FastAPI serves besides MLflow's own application.
ROUTES = (
    ("POST", f"{API}/experiments/create"),
    ("GET", "/get-artifact?run_uuid=1&path=prefect/login"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=1&path=planted"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/planted"),
    ("GET", "/model-versions/get-artifact?name=digits&version=1&path=model.onnx"),
    ("POST", "/graphql"),
    ("GET", "/signup"),
    ("GET", "/"),
    ("POST", "/v1/traces"),
    ("POST", "/gateway/any/mlflow/invocations"),
    ("GET", "/ajax-api/3.0/jobs/1"),
    ("GET", "/ajax-api/3.0/mlflow/assistant/config"),
)


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """The server runs with these settings, started for the second time."""
    with harness.home() as settings:
        with harness.mlflow(settings):
            RegistryWriter(settings.registry_uri)
        with harness.mlflow(settings):
            yield settings


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_nothing_is_served_without_the_login(settings: Settings, method: str, route: str) -> None:
    body = {"name": "evil", "artifact_location": "file:///tmp/evil"} if method == "POST" else None
    for login in (None, ("digits", "guess"), ("admin", "password1234")):
        answer = httpx.request(method, settings.mlflow_tracking_uri + route, json=body, auth=login, timeout=60)
        assert answer.status_code == 401
        assert "WWW-Authenticate" in answer.headers


def test_the_health_check_needs_no_login(settings: Settings) -> None:
    assert httpx.get(f"{settings.mlflow_tracking_uri}/health", timeout=60).text == "OK"


def test_the_login_opens_what_was_there_at_the_first_start(settings: Settings) -> None:
    writer = RegistryWriter(settings.registry_uri)
    assert [one.name for one in writer.client.search_experiments()] == ["digits", "Default"]
    with writer.mlflow.start_run() as run:
        writer.mlflow.log_text("a text", "text.txt")
        assert writer.mlflow.artifacts.load_text(f"{run.info.artifact_uri}/text.txt") == "a text"


def test_versions_are_read_with_the_login_only(settings: Settings) -> None:
    assert RegistryReader(settings.registry_uri).version() is None
    with pytest.raises(RegistryUnreachable, match=r"answered 401 Unauthorized; check .* the name and password"):
        RegistryReader(settings.mlflow_tracking_uri).version()
