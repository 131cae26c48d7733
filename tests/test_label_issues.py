"""Labels that are probably wrong: changed ones are found, reported on the run and queued, and an auditor's decision reaches the next data set."""

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.images import NO_DIGIT, Split
from digits.settings import Settings
from digits.storage import suspected_labels
from flows import check_labels
from flows.ingest import with_feedback
from models import label_issues
from models.architectures import Dense
from models.connections import Platform

CHANGED = [3, 40, 200, 500, 777]  # rows in train


@pytest.fixture
def wrong(bundled: Dataset) -> Dataset:
    """The bundled digits with five wrong labels."""
    labels = bundled.train.labels.copy()
    labels[CHANGED] = (labels[CHANGED] + 5) % 10
    return replace(bundled, train=Split(bundled.train.images, labels))


def made_up(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the probabilities of a good model, (n, 10)."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, count).astype(np.uint8)
    probabilities = np.full((count, 10), 0.002, np.float32)
    probabilities[np.arange(count), labels] = 0.982
    return labels, probabilities


def test_a_label_of_little_probability_is_suspected_the_least_probable_first() -> None:
    labels, probabilities = made_up(500)
    assert label_issues.suspected(labels, probabilities).tolist() == []
    for row, p in ((7, 0.04), (100, 0.001), (300, 0.3)):
        probabilities[row] = (0.9 - p) / 8
        probabilities[row, labels[row]] = p
        probabilities[row, (labels[row] + 1) % 10] = 0.1
    assert label_issues.suspected(labels, probabilities)[:2].tolist() == [100, 7]


def test_few_images_are_not_checked(bundled: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "digits")
    assert label_issues.find(bundled) is None
    assert "at least 5000 are needed" in caplog.text


@pytest.fixture
def found(wrong: Dataset, monkeypatch: pytest.MonkeyPatch) -> label_issues.LabelIssues:
    monkeypatch.setattr(label_issues, "MIN_IMAGES", 1000)
    monkeypatch.setattr(label_issues, "HELD_OUT", 100)
    quick = label_issues.RECIPE.model_copy(update={"architecture": Dense(hidden=(64,)), "batch_size": 16})
    monkeypatch.setattr(label_issues, "RECIPE", quick)
    issues = label_issues.find(wrong)
    assert issues is not None
    return issues


def test_changed_labels_are_found_reported_and_corrected_by_an_auditor(
    found: label_issues.LabelIssues,
    bundled: Dataset,
    wrong: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert found.accuracy > 0.9 and found.checked == len(wrong.train) + len(wrong.validation)
    rows = [row for part, row in found.places if part == "train"]
    assert len(set(rows) & set(CHANGED)) >= 4 and len(found) < 0.1 * found.checked
    assert (np.diff(found.probabilities) >= 0).all()
    first = found.as_json()["suspected"][0]
    given = wrong.splits()[first["part"]].labels[first["row"]]
    assert json.loads(json.dumps(first))["label"] == given != first["predicted"]

    caplog.set_level(logging.INFO, "digits")
    platform = Platform(Settings(home=tmp_path))
    monkeypatch.setattr(label_issues, "find", lambda dataset: found)
    assert check_labels.check(platform, wrong, datetime.now(UTC)) is found
    assert f"{len(found)} of {found.checked:,} training images have a label that is probably wrong" in caplog.text
    picture = platform.settings.home / "label_issues" / f"{wrong.fingerprint}.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in caplog.text
    waiting = suspected_labels.waiting(platform.engine, 999)
    assert len(waiting) == len({one.image for one in found.suspects()})

    image = wrong.train.images[rows[0]].tobytes()
    another = next(one.image for one in found.suspects() if one.image != image)
    for content, decision in ((image, int(bundled.train.labels[rows[0]])), (another, NO_DIGIT)):
        assert suspected_labels.decide(platform.engine, suspected_labels.digest(content), decision, "audit")
    corrected = with_feedback(platform, wrong)
    assert corrected.parent == wrong.fingerprint != corrected.fingerprint
    known = dict(zip((one.tobytes() for one in corrected.train.images), corrected.train.labels, strict=True))
    assert known[image] == bundled.train.labels[rows[0]]
    left = [one.tobytes() for split in (corrected.train, corrected.validation) for one in split.images]
    assert another not in left and corrected.test is wrong.test


def test_a_data_set_that_was_checked_is_not_checked_again_until_the_method_changes(
    found: label_issues.LabelIssues, wrong: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def find(dataset: Dataset) -> label_issues.LabelIssues:
        checked.append(dataset.fingerprint)
        return found

    monkeypatch.setattr(label_issues, "find", find)
    path = tmp_path / "label_issues" / "found.json"
    assert check_labels.find(path, wrong) is found
    known = check_labels.find(path, wrong)
    assert checked == [wrong.fingerprint] and known is not None and known is not found
    assert known.as_json() == found.as_json() and known.suspects() == found.suspects()
    monkeypatch.setattr(label_issues, "RECIPE", label_issues.RECIPE.model_copy(update={"learning_rate": 0.1}))
    assert check_labels.find(path, wrong) is found and len(checked) == 2


def test_a_data_set_without_suspected_labels_is_remembered_too(bundled: Dataset, tmp_path: Path) -> None:
    nothing = label_issues.from_json(bundled, {"checked": 9, "accuracy": 0.99, "suspected": []})
    assert len(nothing) == 0 and nothing.suspects() == [] and nothing.images.shape == (0, 28, 28)


def test_a_data_set_without_corrections_is_the_same(bundled: Dataset) -> None:
    assert datasets.correct(bundled, {}) is bundled
    image, label = bundled.train.images[0].tobytes(), int(bundled.train.labels[0])
    assert datasets.correct(bundled, {image: label, bundled.test.images[0].tobytes(): 3}) is bundled
    changed = datasets.correct(bundled, {image: (label + 1) % 10})
    assert changed.train.labels[0] == (label + 1) % 10 and len(changed.train) == len(bundled.train)
