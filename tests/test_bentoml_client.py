"""The service as users of BentoML know it: its clients, its own server, direct calls and `bentoml.depends`."""

import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest
from bentoml.exceptions import NotFound, UnprocessableEntity
from conftest import Files, Registry, serve_registry, wait_for
from serving import ROOT, Service, classify, png, serving
from starlette.testclient import TestClient

from digits.reference import Reference

NUMBER = ROOT / "docs" / "number.png"
SERVICE = "services.classifier:DigitClassifier"


@pytest.fixture(scope="module")
def registry_of_one(champion_files: Files) -> Iterator[Registry]:
    """A registry with a champion."""
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    yield registry
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[bentoml.SyncHTTPClient]:
    with bentoml.SyncHTTPClient(str(service.client.base_url)) as client:
        yield client


def without_id(prediction: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in prediction.items() if name != "id"}


def test_the_client_sends_arrays_and_lists_and_gets_the_answers_of_plain_http(
    client: Any, service: Service, sample: Reference
) -> None:
    images = sample.images[:3]
    plain = [without_id(classify(service, image)) for image in images]
    for one in (images[0], images[0].astype(float), images[0].tolist()):
        assert without_id(client.classify(images=one)) == plain[0]
    assert without_id(client.classify(images[1])) == plain[1]
    for batch in (images, images.astype(np.int64), images.tolist()):
        answer = client.classify(images=batch)
        assert answer["model_version"] == "1"
        assert [without_id(prediction) for prediction in answer["predictions"]] == plain
    assert len(client.classify(images=images[:1])["predictions"]) == 1


def test_the_client_sends_a_picture_and_raw_pixels(
    client: Any, service: Service, sample: Reference, tmp_path: Path
) -> None:
    (tmp_path / "digit.png").write_bytes(png(sample.images[0]))
    plain = service.client.post("/classify_file", content=png(sample.images[0])).json()
    for file in (tmp_path / "digit.png", str(tmp_path / "digit.png")):
        assert without_id(client.classify_file(file=file)) == without_id(plain)
    read = client.read(NUMBER, length=3)
    assert len(read["text"]) == len(read["lines"][0]["digits"]) == 3
    assert client.explain(sample.images[0])["digit"] == plain["digit"]
    answer = client.classify_file(tmp_path / "digit.png", preview=True)
    assert answer["id"] is None and answer["image"] == plain["image"]
    plain_bulk = service.client.post("/classify_bulk", content=sample.images[:5].tobytes()).json()
    bulk = client.classify_bulk(sample.images[:5].tobytes())
    assert {**bulk, "ids": None} == {**plain_bulk, "ids": None} and len(set(bulk["ids"])) == 5


def test_images_of_the_client_are_logged_without_a_name(client: Any, service: Service, sample: Reference) -> None:
    id = client.classify(images=sample.images[0])["id"]
    service.client.get(f"/predictions/{id}")  # waits until it is written
    window = service.window()
    assert window.clients[window.ids.index(id)] == ""


def test_the_client_gives_feedback_and_reads_about(client: Any, service: Service, sample: Reference) -> None:
    id = client.classify(images=sample.images[0])["id"]
    first = client.feedback(id=id, digit=4)
    number = first.pop("label_number")
    assert first == {"id": id, "digit": 4, "is_digit": True, "source": "api"}
    assert client.feedback(id, 5, "me")["label_number"] > number
    assert service.client.get(f"/predictions/{id}").json()["label"] == 5
    assert client.withdraw(id=id, source="me") == {"id": id, "source": "me"}
    assert service.client.get(f"/predictions/{id}").json()["label"] == 4
    assert client.feedback(id=id, is_digit=False)["digit"] is None
    stored = service.client.get(f"/predictions/{id}").json()
    assert (stored["label"], stored["label_is_digit"]) == (None, False)
    about = service.client.get("/about").json()
    assert {**client.about(), "log": None} == {**about, "log": None}


def test_the_client_raises_what_the_service_refuses(client: Any) -> None:
    with pytest.raises(UnprocessableEntity, match="images has 1 rows"):
        client.classify(images=[[0] * 28])
    with pytest.raises(NotFound, match="no prediction has the id"):
        client.feedback(id="nobody", digit=3)


def test_the_asynchronous_client(service: Service, sample: Reference) -> None:
    async def ask() -> list[dict[str, Any]]:
        async with bentoml.AsyncHTTPClient(str(service.client.base_url)) as client:
            return list(await asyncio.gather(*(client.classify(images=image) for image in sample.images[:4])))

    answers = asyncio.run(ask())
    assert [without_id(one) for one in answers] == [without_id(classify(service, image)) for image in sample.images[:4]]


def test_every_declared_field_has_a_description(service: Service) -> None:
    from pydantic import BaseModel

    from services import schemas

    models = [item for item in vars(schemas).values() if isinstance(item, type) and issubclass(item, BaseModel)]
    assert len(models) > 8
    for model in models:
        assert all(field.description for field in model.model_fields.values()), model
    for route in service.client.get("/schema.json").json()["routes"]:
        assert all("description" in field for field in route["input"].get("properties", {}).values()), route["name"]


def test_bentoml_serve_and_our_own_start_answer_the_same(
    service: Service, registry_of_one: Registry, sample: Reference, tmp_path: Path
) -> None:
    limit = {"DIGITS_BODY_LIMIT_BYTES": "3000000"}
    with serving(tmp_path, registry_of_one, bentoml=SERVICE, **limit) as other:
        other.wait_for(lambda: other.status("/readyz") == 200)
        for image in sample.images[:5]:
            assert without_id(classify(other, image)) == without_id(classify(service, image))
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/classify", {"json": {"images": sample.images[:3].tolist()}}),
            ("POST", "/classify", {"json": {"images": [[300] * 28] * 28}}),
            ("POST", "/classify", {"content": b"{"}),
            ("POST", "/classify_bulk", {"content": b"0" * 4_000_000}),
            ("POST", "/classify_file?preview=true", {"files": {"file": png(sample.images[0])}}),
            ("POST", "/feedback", {"json": {"id": "nobody", "digit": 3}}),
            *(("GET", path, {}) for path in ("/samples", "/nothing", "/classify", "/docs", "/", "/schema.json")),
            *(
                ("GET", path, {})
                for path in ("/openapi.json", "/docs.json", "/livez", "/static_content/swagger-ui.css")
            ),
        ]
        for method, path, content in requests:
            ours, theirs = (one.client.request(method, path, **content) for one in (service, other))
            assert (ours.status_code, ours.headers["content-type"]) == (
                theirs.status_code,
                theirs.headers["content-type"],
            )
            assert _comparable(ours.text) == _comparable(theirs.text), path
        # the metrics are shared through the folder that BentoML makes
        assert 'digits_requests_total{route="/classify",status="200"}' in other.client.get("/metrics").text
        other.stop()
        assert len(other.window()) == 8


def _comparable(text: str) -> Any:
    """The body, its predictions without their ids."""
    if not text.startswith("{"):
        return text
    body = json.loads(text)
    return body | {"predictions": [without_id(one) for one in body.get("predictions", ())]}


@pytest.fixture(scope="module")
def declared(registry_of_one: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The declared methods as BentoML itself answers them, without our routes before them."""
    home = tmp_path_factory.mktemp("declared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITS_HOME", str(home))
        patch.setenv("MLFLOW_TRACKING_URI", registry_of_one.uri)
        patch.setenv("BENTOML_HOME", str(home / "bentoml"))
        from services.classifier import DigitClassifier

        patch.setattr(DigitClassifier, "middlewares", [])
        with TestClient(DigitClassifier.to_asgi(), raise_server_exceptions=False) as client:  # type: ignore[attr-defined]
            wait_for(lambda: client.get("/readyz").status_code == 200)
            wait_for(lambda: bentoml.get_current_service().context.prediction_log.engine)
            yield client


def test_the_declared_methods_answer_as_the_routes_do(
    declared: TestClient, service: Service, sample: Reference
) -> None:
    images = sample.images[:3].tolist()
    bulk = sample.images[:3].tobytes()
    for path, content in (
        ("/classify", {"json": {"images": images[0]}}),
        ("/classify", {"json": {"images": images}}),
        ("/classify_file", {"files": {"file": ("a.png", io.BytesIO(png(sample.images[0])))}}),
        (
            "/read",
            {"files": {"file": ("a.png", io.BytesIO(NUMBER.read_bytes()))}, "data": {"length": "3", "preview": "true"}},
        ),
        ("/explain", {"json": {"image": images[0]}}),
        ("/classify_bulk", {"content": bulk, "headers": {"Content-Type": "application/octet-stream"}}),
    ):
        ours, theirs = (one.post(path, **content) for one in (service.client, declared))  # type: ignore[attr-defined]
        assert theirs.status_code == 200, theirs.text
        expected, found = _comparable(ours.text), _comparable(theirs.text)
        for name in {"id", "ids"} & expected.keys():
            assert found.pop(name) != expected.pop(name)
        assert found == expected
    for content in ({"images": [[300] * 28] * 28}, {"images": [0]}, {"images": [[True] * 3]}):
        assert declared.post("/classify", json=content).status_code == 422
    assert declared.post("/feedback", json={"id": "nobody", "digit": 3}).status_code == 404
    assert declared.post("/about").json()["model_version"] == "1"


def test_the_methods_can_be_called_directly_and_by_a_service_that_depends_on_it(
    registry_of_one: Registry, sample: Reference
) -> None:
    with tempfile.TemporaryDirectory() as home:
        Path(home, "digit.png").write_bytes(png(sample.images[0]))
        np.save(Path(home, "images.npy"), sample.images[:3])
        settings = {"DIGITS_HOME": home, "MLFLOW_TRACKING_URI": registry_of_one.uri, "BENTOML_HOME": f"{home}/bentoml"}
        command = [sys.executable, "-c", DIRECT_CALLS, home]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True)
    digits = sample.probabilities[:3].argmax(1).tolist()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "depends": 2 * digits[0],
        "one": digits[0],
        "many": digits,
        "file": digits[0],
        "preview_id": None,
        "bulk": digits,
        "feedback": {"digit": 3, "source": "api"},
        "version": "1",
        "refused": "images has 1 rows; expected 28 rows of 28 whole numbers from 0 to 255",
    }


DIRECT_CALLS = """
import json, sys, time
from pathlib import Path
import bentoml
import numpy as np
from services.classifier import DigitClassifier

@bentoml.service
class Doubled:
    digits = bentoml.depends(DigitClassifier)

    @bentoml.api
    def double(self, images: np.ndarray) -> int:
        return 2 * self.digits.classify(images).digit

home, doubled = Path(sys.argv[1]), Doubled()
digits, images = doubled.digits, np.load(home / "images.npy")
while digits.about().model_version is None or digits.context.prediction_log.engine is None:
    time.sleep(0.1)
one = digits.classify(images[0])
try:
    digits.classify(images[0][:1])
except bentoml.exceptions.UnprocessableEntity as error:
    refused = str(error)
results = {
    "depends": doubled.double(images[0]),
    "one": one.digit,
    "many": [each.digit for each in digits.classify(images).predictions],
    "file": digits.classify_file(home / "digit.png").digit,
    "preview_id": digits.classify_file(home / "digit.png", preview=True).id,
    "bulk": digits.classify_bulk(images.tobytes()).digits,
    "feedback": digits.feedback(one.id, 3).model_dump(include={"digit", "source"}),
    "version": digits.about().model_version,
    "refused": refused,
}
digits.close()
print(json.dumps(results))
"""


def test_bentoml_describes_the_declared_methods_by_itself(declared: TestClient) -> None:
    paths = declared.get("/docs.json").json()["paths"]
    assert {"/classify", "/classify_file", "/read", "/explain", "/classify_bulk", "/feedback", "/about"} <= paths.keys()
