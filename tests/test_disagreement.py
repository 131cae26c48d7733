"""Answers that the challenger would have given otherwise are queued for labelling, as long as there is a challenger."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, Registry

from digits.reference import Reference
from digits.settings import Settings
from digits.storage import label_queue, predictions
from digits.storage.predictions import PredictionBatch, new_ids
from models import disagreement
from models.connections import Platform


def queued(platform: Platform) -> list[str]:
    now = datetime.now(UTC) - disagreement.AGE
    return sorted(label_queue.waiting(platform.engine, "1", now, 0.0, client=None)["disagreement"])


def test_unlabelled_answers_that_differ_from_the_challengers_are_queued(
    registry: Registry,
    champion_files: Files,
    sample: Reference,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    platform = Platform(Settings(home=tmp_path, mlflow_tracking_uri=registry.uri))
    assert disagreement.update(platform) == 0  # no challenger
    registry.versions["2"] = champion_files
    registry.aliases["challenger"] = "2"
    assert disagreement.update(platform) == 0  # no answers
    said = sample.probabilities[:20].copy()
    said[:5] = np.roll(said[:5], 1, axis=1)
    batch = PredictionBatch(new_ids(20), datetime.now(UTC), "1", sample.images[:20], said, "/classify")
    predictions.append(platform.engine, [batch], audit_sample_rate=0)
    predictions.label(platform.engine, batch.ids[0], 3, "somebody")
    caplog.set_level(logging.INFO, "digits")
    assert disagreement.update(platform) == 4
    assert queued(platform) == sorted(batch.ids[1:5])
    assert "the challenger v2 disagrees with 4 of 20 answers" in caplog.text
    registry.versions["2"] = {**champion_files, "model.onnx": b"damaged"}
    registry.aliases["challenger"] = "3"
    assert disagreement.update(platform) == 0 and queued(platform) == []
    assert "the challenger's answers are not compared" in caplog.text
