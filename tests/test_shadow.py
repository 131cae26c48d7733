"""The challenger answers the champion's images in the background, and whatever it does, the champion's answers stand."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, Registry, wait_for
from serving import Service, classify

from digits.reference import Reference
from digits.storage import database, predictions
from digits.storage.predictions import Answers, new_ids, shadow_id
from models.champion import Champion, Watcher, open_session
from services import shadow
from services.prediction_log import PredictionLog
from services.shadow import Shadow

HOUR = timedelta(hours=1)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = PredictionLog(f"sqlite:///{tmp_path}/digits.db", tmp_path / "spool", interval_seconds=0.02)
    yield log
    log.close()


@pytest.fixture
def watcher(registry: Registry, other_files: Files, tmp_path: Path) -> Watcher:
    """One that has seen the challenger, version 2."""
    registry.versions["2"] = other_files
    registry.aliases["challenger"] = "2"
    watcher = Watcher(registry.uri, "challenger", tmp_path / "champions", interval_seconds=60, optional=True)
    watcher.look()
    return watcher


@pytest.fixture
def running(watcher: Watcher, log: PredictionLog) -> Iterator[Shadow]:
    running = Shadow(watcher, log)
    running.start()
    yield running
    running.stop()


def answers(sample: Reference, begin: int, end: int, version: str = "1") -> Answers:
    images, probabilities = sample.images[begin:end], sample.probabilities[begin:end]
    return Answers(new_ids(end - begin), datetime.now(UTC), version, images, probabilities, "/classify")


def window(tmp_path: Path, role: str = "challenger") -> predictions.Window:
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    try:
        return predictions.read_window(engine, datetime.now(UTC) - HOUR, role=role)
    finally:
        engine.dispose()


def test_the_challenger_answers_the_same_images_and_is_found_from_the_champions_answers(
    running: Shadow, log: PredictionLog, sample: Reference, other_files: Files, tmp_path: Path
) -> None:
    tasks = [answers(sample, 0, 1), answers(sample, 1, 40), answers(sample, 40, 597)]
    for task in tasks:
        running.take(task)
    wait_for(lambda: running.answered == 597)
    assert log.flush() and running.dropped == 0
    found = window(tmp_path)
    by_id = dict(zip(found.ids, found.probabilities, strict=True))
    expected = open_session(other_files["model.onnx"]).answer(sample.images)
    ids = [shadow_id(id) for task in tasks for id in task.ids]
    assert np.allclose([by_id[id] for id in ids], expected, atol=1e-6)
    assert set(found.versions) == {"2"} and len(window(tmp_path, "champion")) == 0
    times = {shadow_id(id): task.at for task in tasks for id in task.ids}
    assert all(times[id] == at for id, at in zip(found.ids, found.at, strict=True))


def test_nobody_answers_where_there_is_no_challenger_or_it_is_the_champion(
    running: Shadow, watcher: Watcher, registry: Registry, sample: Reference
) -> None:
    running.take(answers(sample, 0, 5, version="2"))
    del registry.aliases["challenger"]
    watcher.look()
    assert watcher.standing.champion is None and watcher.standing.trouble is None
    running.take(answers(sample, 0, 5))
    registry.aliases["challenger"] = "2"
    watcher.look()
    running.take(answers(sample, 5, 6))
    wait_for(lambda: running.answered == 1)
    assert running.dropped == 0


def test_what_is_too_much_is_dropped_and_counted(
    running: Shadow, sample: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MOST_WAITING", 30)
    started = time.perf_counter()
    for _ in range(100):
        running.take(answers(sample, 0, 20))
    assert time.perf_counter() - started < 1
    wait_for(lambda: running.answered + running.dropped == 2000)
    assert running.dropped >= 100
    running.take(answers(sample, 0, 20))  # and it goes on
    wait_for(lambda: running.answered + running.dropped == 2020)


def test_a_challenger_that_fails_is_counted_and_the_next_images_are_tried_again(
    running: Shadow, watcher: Watcher, sample: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    champion = watcher.standing.champion
    assert champion is not None

    class Broken(Champion):
        def answer(self, images: object) -> np.ndarray:
            raise RuntimeError("out of luck")

    watcher.standing = replace(watcher.standing, champion=Broken("2", {}, champion.model, champion.certainty))
    running.take(answers(sample, 0, 7))
    wait_for(lambda: running.dropped == 7 and "v2 fails on 7 images" in caplog.text)
    watcher.standing = replace(watcher.standing, champion=champion)
    running.take(answers(sample, 0, 7))
    wait_for(lambda: running.answered == 7)


def test_a_bad_challenger_is_named_and_nobody_stands_in_for_it(
    registry: Registry, other_files: Files, tmp_path: Path, log: PredictionLog
) -> None:
    registry.versions |= {"2": other_files, "3": {**other_files, "model.onnx": b"rot"}}
    registry.aliases["challenger"] = "2"
    cache = tmp_path / "champions"
    Watcher(registry.uri, "challenger", cache, 60, optional=True).look()
    registry.aliases["challenger"] = "3"
    watcher = Watcher(registry.uri, "challenger", cache, 60, optional=True)
    watcher.look()
    assert watcher.standing.champion is None and "checksum of model.onnx" in (watcher.standing.trouble or "")


def test_the_service_answers_as_before_with_a_challenger_in_the_background(
    service: Service, sample: Reference, other_files: Files
) -> None:
    service.registry.versions["2"] = other_files
    service.registry.aliases["challenger"] = "2"
    try:
        service.wait_for(lambda: (service.client.get("/about").json()["challenger"] or {}).get("model_version"))
        one = classify(service, sample.images[0])
        many = service.client.post("/classify_bulk", content=sample.images[:50].tobytes()).json()
        preview = service.client.post("/classify_file?preview=true", content=b"BM").status_code
        assert one["model_version"] == many["model_version"] == "1" and preview == 422
        wanted = {shadow_id(id) for id in (one["id"], *many["ids"])}
        service.wait_for(lambda: wanted <= set(service.window("challenger").ids))
        assert len(service.window("challenger")) == 51
        found = service.client.get(f"/predictions/{shadow_id(one['id'])}").json()
        assert (found["model_version"], found["image"]) == ("2", sample.images[0].tolist())
        assert service.client.get("/about").json()["challenger"]["answered"] == 51
        service.wait_for(lambda: "digits_shadow_answers 51.0" in service.client.get("/metrics").text)
    finally:
        del service.registry.aliases["challenger"]
    service.wait_for(lambda: service.client.get("/about").json()["challenger"] is None)
    classify(service, sample.images[0])
    assert len(service.window("challenger")) == 51
