"""What a retraining gathers: once, in whatever step it dies, and nothing of it is lost when the source is read anew."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from digits.data import datasets, inbox
from digits.data.datasets import Dataset
from digits.settings import Settings
from digits.storage import database, feedback, predictions
from digits.storage.predictions import AUDITOR, Answers, new_ids
from flows import retrain
from flows.ingest import start_from
from flows.retrain import check_policies, gather, noted, resting
from models import champion, gate, promotion
from models import registry as registries
from services.prediction_log import PredictionLog


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    """A home with the bundled digits as current data set and thirty new ones in the inbox."""
    where = Settings(home=tmp_path)
    start_from.fn("bundled", where)
    old = current(where)
    new = 255 - (255 - old.train.images[:30]) // 2 * 2  # the same digits with other bits
    where.inbox.mkdir(parents=True)
    np.savez(where.inbox / "more.npz", images=new, labels=old.train.labels[:30])
    return where


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not be a second old."""
    read = inbox.read_inbox
    monkeypatch.setattr(inbox, "read_inbox", lambda folder: read(folder, settle_seconds=0))


def current(where: Settings) -> Dataset:
    fingerprint = datasets.current(where.datasets)
    assert fingerprint is not None
    return datasets.load(where.datasets, fingerprint)


def size(dataset: Dataset) -> int:
    return len(dataset.train) + len(dataset.validation)


def test_what_lies_in_the_inbox_is_trained_on_and_never_tested_on(where: Settings) -> None:
    before = current(where)
    after = datasets.load(where.datasets, gather.fn(None, where))
    assert size(after) == size(before) + 30
    assert np.array_equal(after.test.images, before.test.images)
    assert [path.name for path in (where.inbox / "taken").iterdir()] == ["more.npz"]


def test_gathering_again_changes_nothing(where: Settings) -> None:
    assert gather.fn(None, where) == gather.fn(None, where)


@pytest.mark.parametrize(
    ("module", "step"), [(datasets, "save"), (feedback, "training"), (datasets, "set_current"), (inbox, "mark_taken")]
)
def test_killed_in_any_step_the_next_one_ends_as_an_undisturbed_one(
    where: Settings, module: object, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            gather.fn(None, where)
    assert (where.inbox / "more.npz").exists()
    fingerprint = gather.fn(None, where)
    assert datasets.current(where.datasets) == fingerprint
    assert size(datasets.load(where.datasets, fingerprint)) == 1527 + 30
    assert [path.name for path in (where.inbox / "taken").iterdir()] == ["more.npz"]


def test_reading_the_source_anew_keeps_what_the_inbox_brought(where: Settings) -> None:
    grown = gather.fn(None, where)
    assert gather.fn("bundled", where) == grown
    assert start_from.fn("bundled", where) == grown


def test_labels_of_feedback_are_trained_on_once_and_outlive_the_source(where: Settings) -> None:
    before = current(where)
    images = 255 - (255 - before.train.images[100:140]) // 2 * 2
    log = PredictionLog(where.database_url, where.spool, audit_share=1.0)
    ids = new_ids(40)
    log.append(Answers(ids, datetime.now(UTC), "1", images, np.full((40, 10), 0.1, np.float32), "/classify"))
    log.close()
    engine = database.connect(where.database_url)
    for id, digit in zip(ids, before.train.labels[100:140].tolist(), strict=True):
        predictions.label(engine, id, digit, AUDITOR)
    after = datasets.load(where.datasets, gather.fn(None, where))
    held_out = feedback.hold_out(engine)
    assert held_out is not None and 0 < len(held_out) < 40
    assert size(after) == size(before) + 30 + 40 - len(held_out)
    assert not np.isin(datasets.digests(held_out.images), datasets.digests(after.train.images)).any()
    assert gather.fn(None, where) == after.fingerprint == gather.fn("bundled", where)


def test_a_corrected_label_replaces_the_one_that_was_trained_on(where: Settings) -> None:
    """The last word counts for learning too, and one that is doubted later is not learned from at all."""
    before = current(where)
    image = 255 - (255 - before.train.images[100:101]) // 2 * 2
    log = PredictionLog(where.database_url, where.spool)
    (id,) = new_ids(1)
    log.append(Answers([id], datetime.now(UTC), "1", image, np.full((1, 10), 0.1, np.float32), "/classify"))
    log.close()
    where = where.model_copy(update={"feedback": {"hold_out": 0.0}})
    for digit in (4, 9):
        predictions.label(database.connect(where.database_url), id, digit, "anna")
        after = datasets.load(where.datasets, gather.fn(None, where))
        learned = datasets.join(after.train, after.validation)
        same = datasets.digests(learned.images) == datasets.digests(image)[0]
        assert learned.labels[same].tolist() == [digit]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("gate", {"minimum_gian": 0.1}, r"DIGITS_GATE: minimum_gian is 0\.1 .*it takes significance, minimum_gain"),
        ("feedback", {"hold_out": 2}, r"DIGITS_FEEDBACK: hold_out is 2 .*less than 1"),
    ],
)
def test_a_wrong_policy_is_named_before_anything_is_trained(
    setting: str, value: dict[str, float], words: str, where: Settings
) -> None:
    check_policies(where)
    with pytest.raises(ValueError, match=words):
        check_policies(where.model_copy(update={setting: value}))


def test_a_retraining_that_failed_rests_as_well(where: Settings) -> None:
    assert resting(where) is None
    with pytest.raises(ValueError, match="broken"), noted(where):
        raise ValueError("broken")
    assert "events start the next from" in (resting(where) or "")


@pytest.mark.parametrize(("current", "promoted"), [("1", ["3"]), ("2", [])])
def test_a_champion_that_came_meanwhile_is_not_replaced(
    current: str, promoted: list[str], where: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evidence is about the champion that was judged."""
    done: list[str] = []
    monkeypatch.setattr(registries, "Registry", lambda uri: None)
    monkeypatch.setattr(champion, "version", lambda uri: current)
    monkeypatch.setattr(promotion, "promote", lambda registry, engine, version, *why: done.append(version))
    monkeypatch.setattr(retrain, "_publish", lambda version, verdict: None)
    retrain.act.fn("3", "1", gate.Verdict("promote", ["better"], {}), where)
    assert done == promoted
