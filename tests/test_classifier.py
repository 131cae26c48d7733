"""The service over HTTP, as a process of its own: before a champion, with one, during a swap, with bad input, and at its end."""

import io
import json
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hostile
import httpx
import numpy as np
import psutil
import pytest
from conftest import Files, Registry, post, serve_registry
from logged import counted
from PIL import Image
from serving import ROOT, Service, classify, png, serving

from digits import reference
from digits.images import Images
from digits.storage import database
from digits.storage.predictions import new_ids
from models import onnx_model


def test_json_png_bulk_and_the_session_itself_give_the_same_answers(
    service: Service, sample: reference.Reference, champion_files: Files
) -> None:
    images = sample.images[:40]
    direct = onnx_model.load(champion_files["model.onnx"]).predict_proba(images)
    many = service.client.post("/classify", json={"images": images.tolist()}).json()["predictions"]
    bulk = service.client.post("/classify_bulk", content=images.tobytes()).json()
    files = [service.client.post("/classify_file", content=png(image)).json() for image in images]
    singles = [classify(service, image) for image in images]
    for answers in (many, files, singles):
        assert [answer["digit"] for answer in answers] == direct.argmax(1).tolist()
        assert np.allclose([answer["probabilities"] for answer in answers], direct, atol=1e-6)
        assert np.allclose([answer["probability"] for answer in answers], direct.max(1), atol=1e-6)
        assert {answer["model_version"] for answer in answers} == {"1"}
    assert [answer["image"] for answer in files] == images.tolist()
    assert bulk["digits"] == direct.argmax(1).tolist() and bulk["model_version"] == "1"
    assert np.allclose(bulk["probabilities"], direct.max(1), atol=1e-6)
    assert (np.array(bulk["digits"]) == sample.labels[:40]).mean() > 0.8


def test_one_image_is_answered_by_an_object_and_a_list_of_one_by_a_list(
    service: Service, sample: reference.Reference
) -> None:
    one = classify(service, sample.images[0])
    assert set(one) == {
        *("id", "digit", "probability", "probabilities"),
        *("uncertain", "prediction_set", "model_version", "is_digit", "digit_score"),
    }
    several = service.client.post("/classify", json={"images": sample.images[:1].tolist()}).json()
    assert set(several) == {"model_version", "predictions"} and len(several["predictions"]) == 1


def test_unknown_ids_hold_neither_a_thread_nor_all_places(service: Service) -> None:
    """The id of the last minute may be another worker's, whose prediction is not stored yet: that is waited for, but in no thread."""

    def ask(id: str) -> int:
        return service.client.post("/feedback", json={"id": id, "digit": 3}).status_code

    def not_found(id: str) -> float:
        started = time.perf_counter()
        assert ask(id) == 404
        return time.perf_counter() - started

    recent, old = new_ids()[0], "0123456789abcdef" * 2
    # the database is opened a moment after the start
    service.wait_for(lambda: ask(old) == 404)
    assert not_found(recent) > 0.4
    assert min(not_found(old) for _ in range(5)) < 0.2
    # On a busy machine a request may be late; if waiting took threads, none of the attempts would succeed.
    for _ in range(8):
        with ThreadPoolExecutor(50) as pool:
            waiting = [pool.submit(ask, recent) for _ in range(50)]
            time.sleep(0.15)
            started = time.perf_counter()
            # one of the routes that need a thread, of which there are 40
            assert service.client.get("/about").status_code == 200
            seconds = time.perf_counter() - started
            found = Counter(future.result() for future in waiting)
        # a quarter of 128
        if seconds < 0.25 and found == {404: 32, 503: 18}:
            break
    assert seconds < 0.25 and found == {404: 32, 503: 18}


def test_every_answer_is_logged_with_its_pixels_and_found_by_its_id(
    service: Service, sample: reference.Reference
) -> None:
    one = classify(service, sample.images[3])
    found = service.client.get(f"/predictions/{one['id']}").json()
    assert found["image"] == sample.images[3].tolist() and found["digit"] == one["digit"]
    assert (found["route"], found["model_version"], found["label"]) == ("/classify", "1", None)
    ids = service.client.post("/classify_bulk", content=sample.images[:25].tobytes()).json()["ids"]
    assert service.client.get(f"/predictions/{ids[-1]}").json()["image"] == sample.images[24].tolist()
    window = service.window()
    assert {one["id"], *ids} <= set(window.ids)


@pytest.mark.parametrize("route", ["/classify", "/classify_file"])
def test_everybody_who_asks_at_once_gets_the_answer_on_their_own_image(
    route: str, service: Service, sample: reference.Reference
) -> None:
    images, writers = sample.images[:120], [f"writer {number}" for number in range(120)]

    def ask(image: Images, writer: str) -> dict[str, Any]:
        body: dict[str, Any] = {"json": {"images": image.tolist()}} if route == "/classify" else {"content": png(image)}
        answer: dict[str, Any] = service.client.post(route, headers={"X-Client-ID": writer}, **body).json()
        return answer

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, images, writers))
    assert [answer["digit"] for answer in answers] == sample.probabilities[:120].argmax(1).tolist()
    ids = [answer["id"] for answer in answers]
    assert logged_clients(service, ids) == writers
    window = service.window()
    logged = dict(zip(window.ids, window.images, strict=True))
    assert all(np.array_equal(logged[id], image) for id, image in zip(ids, images, strict=True))


def logged_clients(service: Service, ids: list[str]) -> list[str]:
    """The clients in the log under these ids."""
    service.client.get(f"/predictions/{ids[-1]}")  # waits until it is written
    window = service.window()
    clients = dict(zip(window.ids, window.clients, strict=True))
    return [clients[id] for id in ids]


def test_the_client_of_every_image_is_logged(service: Service, sample: reference.Reference) -> None:
    images = sample.images[:3]
    requests: dict[str, dict[str, Any]] = {
        "/classify": {"json": {"images": images.tolist()}},
        "/classify_file": {"content": png(images[0])},
        "/classify_bulk": {"content": images.tobytes()},
    }
    for route, body in requests.items():
        for headers, client in (({"X-Client-ID": "ann"}, "ann"), ({}, "")):
            answer = service.client.post(route, headers=headers, **body).json()
            ids = answer.get("ids") or [one["id"] for one in answer.get("predictions", [answer])]
            assert logged_clients(service, ids) == [client] * len(ids), route
        refused = service.client.post(route, headers={"X-Client-ID": "x" * 65}, **body)
        assert refused.status_code == 422 and "X-Client-ID is" in refused.json()["error"]


def test_requests_that_are_answered_together_keep_their_clients(service: Service, sample: reference.Reference) -> None:
    def ask(writer: int) -> Any:
        headers, body = {"X-Client-ID": f"writer {writer}"}, {"images": sample.images[:2].tolist()}
        return service.client.post("/classify", json=body, headers=headers).json()["predictions"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(60)))
    ids = [one["id"] for predictions in answers for one in predictions]
    assert logged_clients(service, ids) == [f"writer {writer}" for writer in range(60) for _ in range(2)]


def test_a_preview_is_answered_and_not_logged(service: Service, sample: reference.Reference) -> None:
    before = len(service.window())
    answer = service.client.post("/classify_file?preview=true", content=png(sample.images[0])).json()
    marker = classify(service, sample.images[0])
    assert answer["id"] is None and answer["digit"] == marker["digit"]
    service.client.get(f"/predictions/{marker['id']}")  # waits until it is written
    window = service.window()
    assert len(window) > before and window.ids[-1] == marker["id"]


def test_a_picture_may_come_as_a_form_field_of_any_size(service: Service, sample: reference.Reference) -> None:
    large = Image.fromarray(255 - sample.images[1]).resize((400, 400), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.convert("RGB").save(buffer, "JPEG")
    answer = service.client.post("/classify_file", files={"file": ("digit.jpg", buffer.getvalue())}).json()
    assert answer["digit"] == int(sample.labels[1])
    assert np.array(answer["image"]).shape == (28, 28)


def test_the_last_word_of_feedback_counts(service: Service, sample: reference.Reference) -> None:
    id = classify(service, sample.images[0])["id"]
    numbers = []
    for digit in (4, 4, 9):
        response = service.client.post("/feedback", json={"id": id, "digit": digit, "source": "test"}).json()
        numbers.append(response.pop("label_number"))
        assert response == {"id": id, "digit": digit, "is_digit": True, "source": "test"}
    assert numbers[1] is None and numbers[0] < numbers[2]
    assert service.client.get(f"/predictions/{id}").json()["label"] == 9
    service.client.post("/withdraw", json={"id": id, "source": "test"}).raise_for_status()
    assert service.client.get(f"/predictions/{id}").json()["label"] == 4
    body = {"id": id, "source": "test", "label_number": numbers[2]}
    service.client.post("/withdraw", json=body).raise_for_status()
    assert service.client.get(f"/predictions/{id}").json()["label"] == 4  # that one was gone
    unknown = service.client.post("/withdraw", json={"id": "0" * 32, "source": "test"})
    assert unknown.status_code == 404 and "no prediction has the id" in unknown.json()["error"]


def test_about_names_the_version_its_recipe_metrics_and_run(service: Service) -> None:
    about = service.client.get("/about").json()
    assert (about["model_version"], about["recipe"]["name"], about["warning"]) == ("1", "linear", None)
    assert about["metrics"]["test_accuracy"] > 0.8
    mode = "workflowType=machine_learning"
    assert about["run_url"] == f"{service.registry.uri}/#/experiments/1/runs/5f3c?{mode}"
    assert about["version_url"] == f"{service.registry.uri}/#/models/digits/versions/1?{mode}"


BLANK = [[0] * 28 for _ in range(28)]


def spoiled(value: Any) -> str:
    image = [row[:] for row in BLANK]
    image[5][7] = "MARK"  # type: ignore[call-overload]
    return json.dumps({"images": image}).replace('"MARK"', value)


BAD: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "300": ("/classify", {"content": spoiled("300")}, 422, "row 5, column 7 is 300; expected a whole number"),
    "1.5": ("/classify", {"content": spoiled("1.5")}, 422, "column 7 is 1.5"),
    "NaN": ("/classify", {"content": spoiled("NaN")}, 400, "the body is not JSON"),
    "a string": ("/classify", {"content": spoiled('"x"')}, 422, 'column 7 is "x"'),
    "null": ("/classify", {"content": spoiled("null")}, 422, "column 7 is null"),
    "true": ("/classify", {"content": spoiled("true")}, 422, "true or false"),
    "huge number": ("/classify", {"content": spoiled("1e999")}, 400, "not JSON"),
    "ragged": ("/classify", {"json": {"images": [*BLANK[:27], [0] * 27]}}, 422, "row 27 has 27 numbers"),
    "wrong shape": ("/classify", {"json": {"images": [[0] * 784]}}, 422, "has 1 rows; expected 28"),
    "flat": ("/classify", {"json": {"images": [0] * 784}}, 422, "flat list of 784"),
    "empty": ("/classify", {"json": {"images": []}}, 422, "has 0 rows"),
    "1,001 images": ("/classify", {"json": {"images": [BLANK] * 1001}}, 422, "holds 1,001 images"),
    "no images": ("/classify", {"json": {}}, 422, 'the field "images" is missing'),
    "another field": ("/classify", {"json": {"images": BLANK, "image": 1}}, 422, 'no field "image"'),
    "a list": ("/classify", {"json": [1]}, 422, "the body is a list of 1"),
    "no body": ("/classify", {}, 400, "not JSON"),
    "half a body": ("/classify", {"content": b'{"images": [['}, 400, "not JSON"),
    "deep nesting": ("/classify", {"content": b"[" * 100_000}, 400, "not JSON"),
    "not UTF-8": ("/classify", {"content": b"\xff\xfe{"}, 400, "not JSON"),
    "text as PNG": (
        "/classify_file",
        {"files": {"file": ("a.png", b"hello", "image/png")}},
        422,
        'begins with "hello"',
    ),
    "SVG": (
        "/classify_file",
        {"content": b"<svg/>", "headers": {"Content-Type": "image/svg+xml"}},
        422,
        "is no picture",
    ),
    "truncated PNG": (
        "/classify_file",
        {"content": png(np.eye(200, dtype=np.uint8))[:90]},
        422,
        "cannot be read to its end",
    ),
    "blank picture": ("/classify_file", {"content": png(np.zeros((50, 50), np.uint8))}, 422, "blank"),
    "empty picture": ("/classify_file", {"content": b""}, 422, "the file is empty"),
    "no file": ("/classify_file", {"files": {"other": ("a.png", b"x")}}, 422, 'no file named "file"'),
    "broken form": (
        "/classify_file",
        {"content": b"garbage", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        400,
        "",
    ),
    "address for a file": ("/classify_file", {"data": {"file": "http://127.0.0.1/"}}, 415, "form field"),
    "wrong preview": ("/classify_file?preview=2", {"content": b"x"}, 422, 'preview is "2"'),
    "783 bytes": ("/classify_bulk", {"content": b"0" * 783}, 422, "has 783 bytes; expected 784"),
    "no bytes": ("/classify_bulk", {}, 422, "has 0 bytes"),
    "too large": ("/classify_bulk", {"content": b"0" * 20_000_000}, 413, "send at most 3,000,000"),
    "too large JSON": ("/classify", {"content": b" " * 4_000_000}, 413, "send at most 3,000,000"),
    "unknown id": ("/feedback", {"json": {"id": "nobody", "digit": 3}}, 404, 'no prediction has the id "nobody"'),
    "digit 10": ("/feedback", {"json": {"id": "nobody", "digit": 10}}, 422, "digit is 10"),
    "digit 3.0": ("/feedback", {"json": {"id": "nobody", "digit": 3.5}}, 422, "digit is 3.5"),
    "id 5": ("/feedback", {"json": {"id": 5, "digit": 3}}, 422, "id is 5"),
    "long source": ("/feedback", {"json": {"id": "a", "digit": 3, "source": "x" * 65}}, 422, "source is"),
    "neither digit nor none": (
        "/feedback",
        {"json": {"id": "a", "is_digit": True}},
        422,
        'the field "digit" is missing',
    ),
    "digit and none": ("/feedback", {"json": {"id": "a", "digit": 3, "is_digit": False}}, 422, "send one of them"),
    "is_digit null": ("/feedback", {"json": {"id": "a", "is_digit": None}}, 422, "is_digit is null"),
    "a label to withdraw of a form": ("/withdraw", {"data": {"id": "a"}}, 415, "send application/json"),
    "a number of a label to withdraw": (
        "/withdraw",
        {"json": {"id": "a", "label_number": "7"}},
        422,
        "label_number is",
    ),
    "a digit to withdraw": ("/withdraw", {"json": {"id": "a", "digit": 3}}, 422, 'no field "digit"'),
    "feedback of a form": ("/feedback", {"data": {"id": "a", "digit": "3"}}, 415, "send application/json"),
    "nothing there": ("/nothing", {}, 404, "there is nothing at /nothing"),
    "wrong method": ("/samples", {}, 405, "does not support POST"),
}


BAD_QUEUES = {
    "limit=0": "limit is",
    "limit=51": "expected a whole number from 1 to 50",
    "limit=-1": "limit is",
    "limit=٣": "limit is",
    "queue=all": "expected one of audit, uncertain, disagreement, quarantine, suspected",
    "exclude=" + ",".join(map(str, range(501))): "exclude has 501 ids",
    "since=7d": "the route has exclude, limit, queue",
}


@pytest.mark.parametrize("query", BAD_QUEUES)
def test_a_wrong_question_for_images_to_label_is_answered_by_a_sentence(query: str, service: Service) -> None:
    response = service.client.get(f"/label_queue?{query}")
    assert response.status_code == 422 and BAD_QUEUES[query] in response.json()["error"]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_by_a_sentence(name: str, service: Service) -> None:
    path, content, status, sentence = BAD[name]
    response = service.client.post(path, **content)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert set(response.json()) == {"error"} and sentence in response.json()["error"]
    assert len(response.text) < 400
    assert service.client.get("/livez").status_code == 200  # and the connection still stands


def test_a_body_without_a_length_is_bounded_too(service: Service) -> None:
    response = service.client.post("/classify_bulk", content=(b"0" * 100_000 for _ in range(60)))
    assert response.status_code == 413 and "send at most 3,000,000" in response.json()["error"]


def bomb(side: int) -> bytes:
    """A whole PNG of black and white pixels, all black: 0.3 MB for 312 MB."""
    pixels, compressor = io.BytesIO(), zlib.compressobj(9)
    for _ in range(side):
        pixels.write(compressor.compress(bytes(1 + (side + 7) // 8)))
    pixels.write(compressor.flush())
    parts = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), b"IDAT" + pixels.getvalue(), b"IEND")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_huge_bodies_and_bombs_take_no_memory(service: Service) -> None:
    processes = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(recursive=True)]

    def peak() -> int:
        """The most that each has ever held, in kB."""
        states = (Path(f"/proc/{process.pid}/status").read_text() for process in processes)
        return sum(int(re.findall(r"VmHWM:\s*(\d+)", state)[0]) for state in states)

    before = peak()
    for path in ("/classify", "/classify_file", "/classify_bulk"):
        response = service.client.post(path, content=(bytes(1_000_000) for _ in range(200)))
        assert response.status_code == 413 and "send at most" in response.json()["error"]
    response = service.client.post("/classify_file", content=bomb(50_000), headers={"Content-Type": "image/png"})
    assert response.status_code == 422 and "pixels" in response.json()["error"]
    assert peak() - before < 50_000


def test_metrics_count_requests_and_do_not_grow_with_unknown_addresses(service: Service) -> None:
    for number in range(5):
        service.client.get(f"/unknown/{number}")
    service.client.post("/classify", json={"images": np.zeros((28, 28), int).tolist()})
    service.client.get("/predictions/0123")
    text = service.client.get("/metrics").text
    assert re.search(r'digits_requests_total\{route="/predictions/\{id\}",status="404"\} [1-9]', text)
    assert re.search(r'digits_requests_total\{route="/classify",status="200"\} [1-9]', text)
    assert re.search(r'digits_answers_total\{digit="\d",version="1"\} [1-9]', text)
    assert re.search(r'digits_request_duration_seconds_bucket\{le="0.01",route="/classify"\} [1-9]', text)
    assert (
        "digits_champion_version 1.0" in text and "digits_log_waiting" in text and "digits_log_lost_total 0.0" in text
    )
    assert "unknown" not in text


def test_a_websocket_is_refused_and_no_error(service: Service) -> None:
    handshake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "c2VjdXJlIGVub3VnaCAuLg=="}
    response = service.client.get("/classify", headers={**handshake, **key})
    assert 400 <= response.status_code < 500
    assert "Traceback" not in (service.home / "service.log").read_text()


def test_the_openapi_describes_the_real_routes(service: Service) -> None:
    from services.routes import router

    document = service.client.get("/openapi.json").json()
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    hidden = {"/", "/draw", "/label", "/docs", "/openapi.json", "/docs.json"}
    real = {
        (route.path, method.lower())  # type: ignore[attr-defined]
        for route in router.routes
        for method in getattr(route, "methods", ())
        if route.path not in hidden and method != "HEAD"  # type: ignore[attr-defined]
    }
    assert described == real | {("/livez", "get"), ("/readyz", "get")}
    for path, item in document["paths"].items():
        for name, (asked, _, status, _) in BAD.items():
            if asked.split("?")[0] == path and status != 405:
                assert str(status) in item["post"]["responses"], f"{path} answers {status} ({name}) undescribed"
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


@pytest.mark.parametrize("path", ["/", "/draw", "/docs"])
def test_pages_load_all_they_need_from_here(path: str, service: Service) -> None:
    response = service.client.get(path)
    assert response.status_code == 200 and "default-src 'self'" in response.headers["content-security-policy"]
    needed = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert needed and all(address.startswith("/") and not address.startswith("//") for address in needed)
    for address in needed:
        assert service.client.get(address).status_code == 200, address


def test_nobody_waits_for_a_slow_picture_or_a_large_list(service: Service, sample: reference.Reference) -> None:
    """Single answers go on while large requests are worked on."""
    large = Image.effect_noise((3000, 3000), 60)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=30)
    ended = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=service.client.base_url, timeout=30) as client:
            for _ in range(3):
                client.post("/classify_file", content=buffer.getvalue())
                client.post("/classify_bulk", content=np.tile(sample.images, (6, 1, 1)).tobytes())
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    seconds = []
    while not ended.is_set():
        started = time.perf_counter()
        classify(service, sample.images[0])
        seconds.append(time.perf_counter() - started)
    assert len(seconds) > 10 and float(np.median(seconds)) < 0.3


def test_requests_are_counted_by_route_and_status_and_all_of_them_at_the_end(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    image = png(sample.images[0])
    with serving(tmp_path, registry, DIGITS_BULK_LOG_SAMPLE_RATE="0") as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        for path in ("/livez", "/metrics", "/", "/docs", "/openapi.json", "/nothing"):
            service.status(path)
        service.client.post("/classify", json={"images": sample.images[:5].tolist()})
        service.client.post("/classify", json={"images": BLANK})
        service.client.post("/classify", json={"images": 3})
        service.client.post("/classify_bulk", content=sample.images[:200].tobytes())
        service.client.post("/classify_file", content=image)
        for preview in (image, b"text"):
            service.client.post("/classify_file?preview=true", content=preview)
        service.client.post("/feedback", json={"id": "nobody", "digit": 3})
        service.stop()
        now = datetime.now(UTC)
        engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
        totals = counted(engine, now - timedelta(hours=1), now)
        engine.dispose()
        assert len(service.window()) == 7
    assert [(one.route, one.status, one.requests, one.images) for one in totals] == [
        ("/classify", 200, 2, 6),
        ("/classify", 422, 1, 0),
        ("/classify_bulk", 200, 1, 200),
        ("/classify_file", 200, 1, 1),
        ("/feedback", 404, 1, 0),
    ]
    assert 1 <= totals[0].uncertain <= 6  # the blank image


def test_before_a_champion_it_says_so_and_then_begins_by_itself(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: "digits retrain" in service.client.get("/about").text)
        assert service.status("/readyz") == 503
        response = service.client.post("/classify", json={"images": BLANK})
        assert response.status_code == 503 and "digits retrain" in response.json()["error"]
        assert service.version() is None and service.status("/") == 200
        registry.versions["1"] = champion_files
        registry.aliases["champion"] = "1"
        service.wait_for(lambda: service.status("/readyz") == 200)
        assert classify(service, sample.images[0])["model_version"] == "1"


def test_the_champion_is_swapped_under_load_without_a_failed_request(
    registry: Registry, champion_files: Files, other_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    registry.versions |= {"1": champion_files, "2": other_files, "3": {**other_files, "model.onnx": b"rot"}}
    registry.aliases["champion"] = "1"
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        ended = threading.Event()
        seen: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []

        def ask() -> None:
            with httpx.Client(base_url=service.client.base_url) as client:
                while not ended.is_set():
                    response = client.post("/classify", json={"images": sample.images[0].tolist()})
                    (seen if response.status_code == 200 else failed).append(response.json())

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        service.wait_for(lambda: seen)
        for version in ("2", "1", "2"):
            registry.aliases["champion"] = version
            service.wait_for(lambda version=version: service.version() == version)  # type: ignore[misc]
        registry.aliases["champion"] = "3"
        service.wait_for(lambda: "checksum of model.onnx" in (service.client.get("/about").json()["warning"] or ""))
        time.sleep(0.3)
        ended.set()
        for client in clients:
            client.join()
        assert not failed and {answer["model_version"] for answer in seen} == {"1", "2"}
        assert seen[-1]["model_version"] == "2"
        service.stop()
        assert {answer["id"] for answer in seen} <= set(service.window().ids)  # nothing is lost on SIGTERM
        assert (tmp_path / "service.log").read_text().count("checksum of model.onnx") == 1


def test_a_champion_that_fails_while_it_answers_is_replaced_by_the_one_before_it_within_the_request(
    registry: Registry, champion_files: Files, other_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    hundred = sample.images[:100].tobytes()
    registry.versions |= {"1": champion_files, "2": hostile.failing_at(100, champion_files)}
    registry.aliases["champion"] = "2"
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        alone = service.client.post("/classify_bulk", content=hundred)
        assert alone.status_code == 503 and "digits v2 fails while it answers" in alone.text
        assert classify(service, sample.images[0])["model_version"] == "2"
        registry.aliases["champion"] = "1"
        service.wait_for(lambda: service.version() == "1")
        registry.versions["3"] = hostile.failing_at(100, other_files)
        registry.aliases["champion"] = "3"
        service.wait_for(lambda: service.version() == "3")
        answers = [service.client.post("/classify_bulk", content=hundred) for _ in range(3)]
        assert [(answer.status_code, answer.json()["model_version"]) for answer in answers] == [(200, "1")] * 3
        time.sleep(0.5)  # some polls later
        about = service.client.get("/about").json()
        assert about["model_version"] == "1" and "digits v3 fails while it answers" in about["warning"]


def test_an_image_for_which_the_champion_never_ends_is_answered_by_the_one_before_it(
    registry: Registry, champion_files: Files, other_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    registry.versions |= {"1": other_files, "2": hostile.endless_for_some(champion_files)}
    registry.aliases["champion"] = "1"
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: service.version() == "1")
        registry.aliases["champion"] = "2"
        service.wait_for(lambda: service.version() == "2")
        assert classify(service, sample.images[0])["model_version"] == "2"
        image = sample.images[0].copy()
        image[0, 0] = 255
        assert classify(service, image)["model_version"] == "1"
        assert service.status("/livez") == 200
        assert "did not end within 2.02 s" in service.client.get("/about").json()["warning"]


def test_without_registry_and_database_it_answers_from_its_copy_and_keeps_what_it_answered(
    champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
    server.shutdown()
    server.server_close()
    for path in tmp_path.glob("digits.db*"):
        path.unlink()
    (tmp_path / "digits.db").mkdir()  # a folder is no database
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        answer = classify(service, sample.images[0])
        assert answer["model_version"] == "1" and "does not answer" in service.client.get("/about").json()["warning"]
        assert service.client.post("/feedback", json={"id": answer["id"], "digit": 1}).status_code == 503
        service.wait_for(lambda: service.client.get("/about").json()["log"]["sealed_segments"] == 1)
        (tmp_path / "digits.db").rmdir()
        service.wait_for(lambda: service.client.get("/about").json()["log"]["sealed_segments"] == 0)
        assert service.client.get(f"/predictions/{answer['id']}").json()["image"] == sample.images[0].tolist()


def test_the_access_log_has_a_line_for_each_request_where_it_is_asked_for(registry: Registry, tmp_path: Path) -> None:
    with serving(tmp_path, registry, DIGITS_ACCESS_LOG="true") as service:
        service.client.post("/classify", json={}, headers={"X-Request-ID": "a-1"})
        request = r'127\.0\.0\.1 "POST /classify HTTP/1\.1" 422 \d+\.\d ms \(request a-1\)'
        line = re.compile(rf"^[\d-]+ [\d:,]+ INFO digits\.access: {request}$", re.M)
        log = tmp_path / "service.log"
        service.wait_for(lambda: line.search(log.read_text()), seconds=10)
        assert len(line.findall(log.read_text())) == 1
        service.client.get("/nothing%0a2026-01-02 serving%1b[31m")
        service.wait_for(lambda: "/nothing" in log.read_text(), seconds=10)
        (forged,) = (text for text in log.read_text().splitlines() if "/nothing" in text)
        assert r"/nothing\n2026-01-02 serving\x1b[31m" in forged


@pytest.mark.parametrize("bentoml", [None, "services.classifier:DigitClassifier"])
def test_every_line_of_ours_is_one_json_object_that_names_its_request(
    registry: Registry, champion_files: Files, tmp_path: Path, bentoml: str | None
) -> None:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    wanted = {"DIGITS_ACCESS_LOG": "true", "DIGITS_LOG_FORMAT": "json"}
    with serving(tmp_path, registry, bentoml, **wanted) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        service.client.get("/about", headers={"X-Request-ID": "a-1"})
        service.client.post("/classify", json={"images": 3}, headers={"X-Request-ID": "a-2"})
        log = tmp_path / "service.log"
        service.wait_for(lambda: "a-2" in log.read_text(), seconds=10)
        lines = log.read_text().splitlines()
        # those of BentoML's own supervisor are not
        entries = [json.loads(line) for line in lines if bentoml is None or line.startswith("{")]
    assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in entries)
    by_request = {entry["request_id"]: entry for entry in entries if "request_id" in entry}
    asked = by_request["a-2"]
    assert (asked["method"], asked["path"], asked["status"], asked["client"]) == ("POST", "/classify", 422, "127.0.0.1")
    assert by_request["a-1"]["status"] == 200 and by_request["a-1"]["milliseconds"] > 0
    (served,) = (entry for entry in entries if entry["message"].startswith("serving digits v1"))
    assert served["logger"] == "digits.champion" and "request_id" not in served


def test_two_workers_share_log_feedback_and_metrics(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    with serving(tmp_path, registry, DIGITS_SERVICE_WORKERS="2") as service:

        def ask_anew(path: str, **content: Any) -> httpx.Response:
            """On a connection of its own, so that either worker may take it."""
            return post(f"{service.client.base_url}{path}", **content)

        body = {"images": sample.images[0].tolist()}
        service.wait_for(lambda: all(ask_anew("/classify", json=body).status_code == 200 for _ in range(20)))
        for digit in range(10):
            id = ask_anew("/classify", json=body).json()["id"]
            assert ask_anew("/feedback", json={"id": id, "digit": digit}).status_code == 200
        counted = 'digits_requests_total{route="/feedback",status="200"} 10.0'
        service.wait_for(lambda: counted in service.client.get("/metrics").text)
        service.stop()
        labels = service.window().labels
        assert sorted(labels[labels >= 0].tolist()) == list(range(10))


def test_serving_needs_none_of_the_training_stack() -> None:
    heavy = {"tensorflow", "keras", "mlflow", "prefect", "evidently", "onnx", "sklearn", "pandas", "scipy"}
    program = f"import sys, services.classifier; print({heavy!r} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).strip() == "set()"
