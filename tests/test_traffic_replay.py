"""Last week's labelled traffic, answered by another version: both on the same images, and none that one of them knows."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import Registry
from sqlalchemy import Engine
from typer.testing import CliRunner
from versions import version_files

from digits.data.datasets import Dataset
from digits.images import NO_DIGIT, Images, Split
from digits.storage import predictions
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch, new_ids
from models import gate, traffic_replay
from models.model_store import ModelStore
from models.run_diff import Agreement
from ops.cli import app

NOW = datetime.now(UTC)
LAST_WEEK = NOW - timedelta(days=7)


@pytest.fixture
def store(registry: Registry, bundled: Dataset, tmp_path: Path) -> ModelStore:
    """A champion that learned much, and a version 2 that learned little."""
    for version, count in (("1", 1000), ("2", 60)):
        learned = Split(bundled.train.images[:count], bundled.train.labels[:count])
        registry.versions[version] = version_files(learned, bundled)
    registry.aliases["champion"] = "1"
    return ModelStore(registry.uri, tmp_path)


def label(
    engine: Engine,
    images: Images,
    labels: np.ndarray,
    source: str,
    audit: float,
    at: datetime = NOW,
    clients: Sequence[str] = (),
) -> None:
    ids, even = new_ids(len(images)), np.full((len(images), 10), 0.1, np.float32)
    predictions.append(engine, [PredictionBatch(ids, at, "1", images, even, "/classify", clients)], audit)
    for id, digit in zip(ids, labels.tolist(), strict=True):
        predictions.label(engine, id, digit, source)


def test_both_answer_the_same_images_audited_and_volunteered_apart(
    store: ModelStore, engine: Engine, bundled: Dataset
) -> None:
    test, train = bundled.test, bundled.train
    label(engine, test.images[:200], test.labels[:200], AUDITOR, audit=1.0)
    label(engine, test.images[190:230], test.labels[190:230], "anna", audit=0.0)
    label(engine, train.images[50:80], train.labels[50:80], AUDITOR, audit=1.0)
    label(engine, test.images[230:], test.labels[230:], AUDITOR, audit=1.0, at=LAST_WEEK - timedelta(hours=1))
    found = traffic_replay.replay(store, engine, "v2", LAST_WEEK)
    parts = {one.sample.name: one for one in found.comparisons}
    # Of the ten images that came again, the newest answer counts.
    sizes = {name: len(one.sample.labels) for name, one in parts.items()}
    assert (sizes["audited"], sizes["volunteered"], found.repeated) == (190, 40, 10)
    assert found.trained_on == {"2": 10, "1": 30}
    assert sum(size for name, size in sizes.items() if name.startswith("audited digit")) == 190
    digits = [store.fetch_version(version).predict_proba(test.images[:190]).argmax(axis=1) for version in "21"]
    right_2, right_1 = (answered == test.labels[:190] for answered in digits)
    audited = parts["audited"]
    assert (audited.version.right, audited.champion.right) == (right_2.sum(), right_1.sum())
    gained, lost = int((right_2 & ~right_1).sum()), int((right_1 & ~right_2).sum())
    assert (audited.sample.gained, audited.sample.lost) == (gained, lost)
    # Nobody knows who sent them: as independent images, by McNemar's exact test.
    assert audited.p_value == pytest.approx(Agreement(0, gained, lost, 0).p_value)
    assert audited.version.right < audited.champion.right and audited.p_value < 0.01


def test_images_without_a_digit_are_not_compared(store: ModelStore, engine: Engine, bundled: Dataset) -> None:
    test = bundled.test
    label(engine, test.images[:5], np.full(5, NO_DIGIT), AUDITOR, audit=1.0)
    with pytest.raises(LookupError, match="no answer since"):
        traffic_replay.replay(store, engine, "2", LAST_WEEK)
    label(engine, test.images[5:25], test.labels[5:25], AUDITOR, audit=1.0)
    audited = traffic_replay.replay(store, engine, "2", LAST_WEEK).comparisons[0]
    assert sorted(audited.sample.labels.tolist()) == sorted(test.labels[5:25].tolist())


def test_images_of_one_client_are_less_evidence_than_images_of_many(
    store: ModelStore, engine: Engine, bundled: Dataset
) -> None:
    test = bundled.test
    for client in range(12):
        rows = slice(20 * client, 20 * client + 20)
        label(engine, test.images[rows], test.labels[rows], AUDITOR, audit=1.0, clients=[f"writer {client}"] * 20)
    audited = traffic_replay.replay(store, engine, "2", LAST_WEEK).comparisons[0]
    assert len(audited.sample.totals) == 12
    assert audited.p_value == pytest.approx(2 * gate.sign_flip(-audited.sample.totals))
    assert audited.p_value > 10 * Agreement(0, audited.sample.gained, audited.sample.lost, 0).p_value


def test_what_cannot_be_compared_is_said(store: ModelStore, engine: Engine, bundled: Dataset) -> None:
    with pytest.raises(LookupError, match=r"no answer since 20.* UTC has a label; label some at /label"):
        traffic_replay.replay(store, engine, "2", LAST_WEEK)
    label(engine, bundled.train.images[:5], bundled.train.labels[:5], AUDITOR, audit=1.0)
    with pytest.raises(LookupError, match=r"all 5 labelled images since .* were trained on by v2 or v1"):
        traffic_replay.replay(store, engine, "2", LAST_WEEK)
    with pytest.raises(LookupError, match="the registry has no digits v7"):
        traffic_replay.replay(store, engine, "7", LAST_WEEK)
    with pytest.raises(ValueError, match="'best' is no version"):
        traffic_replay.replay(store, engine, "best", LAST_WEEK)
    with pytest.raises(ValueError, match="v1 is the champion"):
        traffic_replay.replay(store, engine, "1", LAST_WEEK)


def test_the_command_prints_a_table(
    store: ModelStore,
    registry: Registry,
    engine: Engine,
    bundled: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label(engine, bundled.test.images[:50], bundled.test.labels[:50], AUDITOR, audit=1.0)
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("DIGITS_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    done = CliRunner().invoke(app, ["replay-traffic", "2", "--since", "1d"], catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["labels", "images"] and "champion v1 right (95 %)" in lines[0]
    assert lines[1].split()[:2] == ["audited", "50"]
    assert lines[-1] == "left out: 0 that v2 was trained on, 0 that v1 was trained on, 0 that came again later"
