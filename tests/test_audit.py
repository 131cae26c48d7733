"""The audit sample on disk: what waits is laid out, and the folder a picture was moved to is its label."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from monitored import held_out
from PIL import Image
from sqlalchemy import Engine

from digits.images import NO_DIGIT
from digits.storage import feedback, predictions
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch, new_ids
from ops import audit
from services.prediction_log import PredictionLog

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def answered(url: str, folder: Path, count: int, audit_sample_rate: float) -> list[str]:
    """Answers as the service logs them; their ids."""
    ids = new_ids(count)
    log = PredictionLog(url, folder / "spool", audit_sample_rate)
    log.append(
        PredictionBatch(ids, NOON, "1", held_out()[0][:count], np.full((count, 10), 0.1, np.float32), "/classify")
    )
    log.close()
    return ids


def test_pictures_that_were_sorted_are_labels_of_the_audit_sample(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    answered(database_url, tmp_path, 3, audit_sample_rate=0)
    ids = answered(database_url, tmp_path, 5, audit_sample_rate=1)
    folder = tmp_path / "audit"
    assert audit.write_images(feedback.unlabelled_audit(engine, NOON), folder, max_images=100) == 5
    assert {path.stem for path in folder.glob("*.png")} == set(ids)
    image = 255 - np.asarray(Image.open(folder / f"{ids[0]}.png"))[5::10, 5::10]
    assert np.array_equal(image, held_out()[0][0])
    for id in ids[:2]:
        (folder / f"{id}.png").rename(folder / "7" / f"{id}.png")
    assert audit.collect(engine, folder) == audit.collect(engine, folder) == 2
    window = predictions.read_window(engine, NOON, labelled=True)
    assert sorted(window.ids) == sorted(ids[:2])
    assert window.labels.tolist() == [7, 7] and window.audited.all()
    assert audit.write_images(feedback.unlabelled_audit(engine, NOON), folder, max_images=100) == 3


def test_a_picture_moved_on_is_a_correction(database_url: str, engine: Engine, tmp_path: Path) -> None:
    (id,) = answered(database_url, tmp_path, 1, audit_sample_rate=1)
    audit.write_images(feedback.unlabelled_audit(engine, NOON), tmp_path / "audit", max_images=1)
    path = tmp_path / "audit" / f"{id}.png"
    for folder, label in (("3", 3), ("8", 8), ("no-digit", NO_DIGIT)):
        path = path.rename(tmp_path / "audit" / folder / path.name)
        audit.collect(engine, tmp_path / "audit")
        assert predictions.find(engine, id).labels.tolist() == [label]


def test_a_picture_that_stays_does_not_undo_what_an_auditor_said_later(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = answered(database_url, tmp_path, 1, audit_sample_rate=1)
    audit.write_images(feedback.unlabelled_audit(engine, NOON), tmp_path / "audit", max_images=1)
    (tmp_path / "audit" / f"{id}.png").rename(tmp_path / "audit" / "3" / f"{id}.png")
    audit.collect(engine, tmp_path / "audit")
    monkeypatch.setattr(audit, "CLOCK_TOLERANCE", timedelta(0))  # the correction comes at once here
    predictions.label(engine, id, 8, AUDITOR)
    assert audit.collect(engine, tmp_path / "audit") == 1
    assert predictions.find(engine, id).labels.tolist() == [8]


def test_no_more_than_asked_for_lie_there_and_strange_files_are_no_labels(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    answered(database_url, tmp_path, 20, audit_sample_rate=1)
    folder = tmp_path / "audit"
    waiting = feedback.unlabelled_audit(engine, NOON)
    assert [audit.write_images(waiting, folder, most) for most in (5, 5, 8)] == [5, 5, 8]
    (folder / "4/holiday.png").write_bytes(b"")
    assert audit.collect(engine, folder) == 0
