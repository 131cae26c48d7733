"""A retraining ingests new data exactly once, whichever step it dies in, and keeps it when the source is read again."""

import gzip
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import Registry as Memory
from PIL import Image
from versions import VersionRegistry

from digits.data import datasets, inbox
from digits.data.datasets import Dataset
from digits.images import Split
from digits.settings import Settings
from digits.storage import database, feedback, predictions
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch, new_ids
from flows import retrain, verdict_page
from flows.ingest import set_source
from flows.retrain import assemble_dataset, check_policies, cooldown_message, report_end
from models import evaluation_sets, gate, promotion
from models import registry as registries
from models.connections import Platform
from monitoring import baseline
from services.prediction_log import PredictionLog


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home with the bundled digits as current data set and thirty new ones in the inbox."""
    settings = Settings(home=tmp_path)
    set_source(Platform(settings), "bundled")
    old = current(settings)
    new = 255 - (255 - old.train.images[:30]) // 2 * 2  # the same digits with other bits
    settings.inbox.mkdir(parents=True)
    np.savez(settings.inbox / "more.npz", images=new, labels=old.train.labels[:30])
    return settings


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not be a second old."""
    read = inbox.read_inbox
    monkeypatch.setattr(inbox, "read_inbox", partial(read, settle_seconds=0))


def current(settings: Settings) -> Dataset:
    fingerprint = datasets.current(settings.datasets)
    assert fingerprint is not None
    return datasets.load(settings.datasets, fingerprint)


def assemble(settings: Settings, data: str | None = None) -> Dataset:
    return assemble_dataset(Platform(settings), data)


def size(dataset: Dataset) -> int:
    return len(dataset.train) + len(dataset.validation)


def test_what_lies_in_the_inbox_is_trained_on_and_never_tested_on(settings: Settings) -> None:
    before = current(settings)
    after = assemble(settings)
    assert size(after) == size(before) + 30
    assert np.array_equal(after.test.images, before.test.images)
    assert [path.name for path in (settings.inbox / "taken").iterdir()] == ["more.npz"]


def test_a_source_that_grew_by_a_row_is_tested_on_images_that_nothing_was_trained_on(
    settings: Settings, tmp_path: Path
) -> None:
    """Through a CSV, as `digits ingest` and `digits retrain` read it."""
    digits = current(settings)
    grown, path = datasets.join(digits.train, digits.validation), tmp_path / "digits.csv"
    write_csv(path, Split(grown.images[1:], grown.labels[1:]))
    set_source(Platform(settings), str(path))
    before = assemble(settings)
    write_csv(path, grown)
    set_source(Platform(settings), str(path))
    after = assemble(settings)
    learned = datasets.digests(datasets.join(before.train, before.validation).images)
    assert sum(len(part) for part in after.splits().values()) == sum(len(part) for part in before.splits().values()) + 1
    assert not np.isin(datasets.digests(after.test.images), learned).any()
    assert np.isin(datasets.digests(before.test.images), datasets.digests(after.test.images)).all()


def write_csv(path: Path, split: Split) -> None:
    np.savetxt(path, np.column_stack([split.labels, split.images.reshape(-1, 784)]), "%d", ",")


def test_a_bomb_in_the_inbox_ends_as_a_rejected_file(settings: Settings) -> None:
    before = current(settings)
    with gzip.open(settings.inbox / "bomb.csv.gz", "wb", 1) as file:
        file.write((b"1" + b",0" * 784 + b"\n") * 10_000)
    limited = settings.model_copy(update={"source_limit_bytes": 10_000_000})
    assert size(assemble(limited)) == size(before) + 30
    rejected = settings.inbox / "rejected"
    assert "has more than 10,000,000 bytes" in (rejected / "bomb.csv.gz.reason.txt").read_text()
    assert sorted(path.name for path in settings.inbox.iterdir()) == ["rejected", "taken"]


def test_strange_files_in_the_inbox_neither_end_nor_stop_a_retraining(settings: Settings) -> None:
    before = current(settings)
    for name in ("n" * 250 + ".csv", os.fsdecode(b"caf\xe9.csv")):
        (settings.inbox / name).write_text("garbage")
    (settings.inbox / "scans" / "3").mkdir(parents=True)
    (settings.inbox / "scans" / "3" / "empty.png").touch()
    os.mkfifo(settings.inbox / "scans" / "3" / "pipe.png")
    (settings.inbox / "all").symlink_to("/")
    after = assemble(settings)
    assert size(after) == size(before) + 30
    assert sorted(path.name for path in settings.inbox.iterdir()) == ["rejected", "taken"]
    assert len(list((settings.inbox / "rejected").glob("*.reason.txt"))) == 4
    assert assemble(settings).fingerprint == after.fingerprint


def test_a_blank_picture_stays_out_of_training_and_the_200_beside_it_do_not(settings: Settings) -> None:
    before = current(settings)
    for row, (image, label) in enumerate(zip(before.train.images[:200], before.train.labels[:200], strict=True)):
        folder = settings.inbox / "scans" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - (255 - image) // 4 * 4).save(folder / f"{row}.png")
    Image.new("L", (28, 28)).save(settings.inbox / "scans" / "3" / "blank.png")
    after = assemble(settings)
    assert size(after) == size(before) + 30 + 200
    rejected = settings.inbox / "rejected"
    assert "3/blank.png" in (rejected / "scans.rows.csv").read_text()
    assert [path.name for path in rejected.iterdir()] == ["scans.rows.csv"]
    assert assemble(settings, "bundled").fingerprint == after.fingerprint


def test_labels_that_the_champion_contradicts_stay_out_also_when_the_source_is_read_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = current(settings)
    with np.load(settings.inbox / "more.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    digit_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}

    def predict_proba(images: np.ndarray) -> np.ndarray:
        return np.eye(10)[[digit_of[image.tobytes()] for image in images]]

    labels[:2] = (labels[:2] + 1) % 10
    np.savez(settings.inbox / "more.npz", images=images, labels=labels)
    monkeypatch.setattr(retrain, "champion_predictions", lambda platform: predict_proba)
    after = assemble(settings)
    assert size(after) == size(before) + 28
    monkeypatch.undo()
    assert assemble(settings, "bundled").fingerprint == after.fingerprint


def test_assembling_twice_gives_the_same_data_set(settings: Settings) -> None:
    assert assemble(settings).fingerprint == assemble(settings).fingerprint


@pytest.mark.parametrize(
    ("module", "step"), [(datasets, "save"), (feedback, "training"), (datasets, "set_current"), (inbox, "archive")]
)
def test_killed_in_any_step_the_next_one_ends_as_an_undisturbed_one(
    settings: Settings, module: object, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            assemble(settings)
    assert (settings.inbox / "more.npz").exists()
    dataset = assemble(settings)
    assert datasets.current(settings.datasets) == dataset.fingerprint
    assert size(dataset) == size(datasets.load(settings.datasets, dataset.fingerprint)) == 1527 + 30
    assert [path.name for path in (settings.inbox / "taken").iterdir()] == ["more.npz"]


def test_reading_the_source_anew_keeps_what_the_inbox_brought(settings: Settings) -> None:
    grown = assemble(settings).fingerprint
    assert assemble(settings, "bundled").fingerprint == grown
    assert set_source(Platform(settings), "bundled") == grown


def test_labels_of_feedback_are_trained_on_once_and_outlive_the_source(settings: Settings) -> None:
    before = current(settings)
    images = 255 - (255 - before.train.images[100:140]) // 2 * 2
    log = PredictionLog(settings.database_url, settings.spool, audit_sample_rate=1.0)
    ids = new_ids(40)
    log.append(PredictionBatch(ids, datetime.now(UTC), "1", images, np.full((40, 10), 0.1, np.float32), "/classify"))
    log.close()
    engine = database.connect(settings.database_url)
    for id, digit in zip(ids, before.train.labels[100:140].tolist(), strict=True):
        predictions.label(engine, id, digit, AUDITOR)
    after = assemble(settings)
    audited = feedback.audited_traffic(engine)
    assert audited is not None and len(audited) == 40
    learned = datasets.digests(datasets.join(after.train, after.validation).images)
    held_out = int((~np.isin(datasets.digests(audited.images), learned)).sum())
    assert 0 < held_out < 40 and size(after) == size(before) + 30 + 40 - held_out
    assert assemble(settings).fingerprint == after.fingerprint == assemble(settings, "bundled").fingerprint


def test_a_corrected_label_replaces_the_one_that_was_trained_on(settings: Settings) -> None:
    """The last word counts for learning too, and one that is doubted later is not learned from at all."""
    before = current(settings)
    image = 255 - (255 - before.train.images[100:101]) // 2 * 2
    log = PredictionLog(settings.database_url, settings.spool)
    (id,) = new_ids(1)
    log.append(PredictionBatch([id], datetime.now(UTC), "1", image, np.full((1, 10), 0.1, np.float32), "/classify"))
    log.close()
    settings = settings.model_copy(update={"feedback": {"hold_out": 0.0}})
    for digit in (4, 9):
        predictions.label(database.connect(settings.database_url), id, digit, "anna")
        after = assemble(settings)
        learned = datasets.join(after.train, after.validation)
        same = datasets.digests(learned.images) == datasets.digests(image)[0]
        assert learned.labels[same].tolist() == [digit]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "gate",
            {"minimum_gian": 0.1},
            r"for DIGITS_GATE\nminimum_gian\n.*not permitted .*input_value=0\.1",
        ),
        ("feedback", {"hold_out": 2}, r"for DIGITS_FEEDBACK\nhold_out\n.*less than 1 .*input_value=2"),
    ],
)
def test_a_wrong_policy_is_named_before_anything_is_trained(
    setting: str, value: dict[str, float], message: str, settings: Settings
) -> None:
    check_policies(settings)
    with pytest.raises(ValueError, match=message):
        check_policies(settings.model_copy(update={setting: value}))


def test_events_wait_after_a_failed_retraining_too(settings: Settings) -> None:
    platform = Platform(settings)
    assert cooldown_message(platform) is None
    with pytest.raises(ValueError, match="broken"), report_end(platform):
        raise ValueError("broken")
    assert "events start the next from" in (cooldown_message(platform) or "")


@pytest.mark.parametrize(("current", "promoted"), [("1", ["3"]), ("2", [])])
def test_a_champion_that_came_meanwhile_is_not_replaced(
    current: str, promoted: list[str], settings: Settings, registry: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evidence is about the champion that was judged."""
    done: list[str] = []
    registry.versions["1"], registry.aliases["champion"] = {}, current
    settings = settings.model_copy(update={"mlflow_tracking_uri": registry.uri})
    monkeypatch.setattr(registries, "RegistryWriter", lambda uri: VersionRegistry(registry))
    monkeypatch.setattr(promotion, "replace_champion", lambda *arguments: done.append(arguments[2]))
    monkeypatch.setattr(verdict_page, "publish", lambda *_, **__: None)
    monkeypatch.setattr(evaluation_sets, "pin_first_anchor", lambda *_: None)
    retrain.apply_verdict(Platform(settings), "3", "1", gate.GateVerdict("promote", ["better"], {}))
    assert done == promoted


def test_the_page_of_a_verdict_shows_a_table_of_the_evaluation_sets() -> None:
    labels = (np.arange(1000) % 10).astype(np.uint8)
    worse = np.where(np.arange(1000) < 100, (labels + 1) % 10, labels).astype(np.uint8)
    facts, policy = gate.ModelFacts(400_000, 0.05), gate.GatePolicy()
    samples = [gate.EvaluationSample("anchor", labels, worse, labels, left_out=7)]
    page = verdict_page.in_full("3", gate.judge(samples, facts, facts, policy, policy.significance))
    assert page.startswith(
        "# digits v3: hold\n\n- anchor: accuracy falls from 1.0000 to 0.9000, 100 errors more than 0"
    )
    assert "\n| set | images | left out | champion | candidate | p | bound of more errors | allowed |\n| --- |" in page
    assert "\n| anchor | 1,000 | 7 | 1.0000 | 0.9000 | 1 | 100.0 | 3.0 |\n" in page
    first = verdict_page.in_full("1", gate.judge_first(0.9, 0.8, facts, policy))
    assert "| accuracy | 0.9 |" in first and "| set |" not in first


def test_a_promotion_records_the_traffic_that_it_was_judged_on_as_normal(
    settings: Settings, registry: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.versions["1"], registry.aliases["champion"] = {}, "1"
    settings = settings.model_copy(update={"mlflow_tracking_uri": registry.uri})
    platform, at, ids = Platform(settings), datetime.now(UTC) - timedelta(hours=1), new_ids(300)
    images = current(settings).train.images[:300]
    batch = PredictionBatch(ids, at, "1", images, np.full((300, 10), 0.1, np.float32), "/classify")
    predictions.append(platform.engine, [batch], audit_sample_rate=1.0)
    for id in ids[:20]:
        predictions.label(platform.engine, id, 1, AUDITOR)
    feedback.ingest_feedback(platform.engine, feedback.FeedbackPolicy())
    monkeypatch.setattr(registries, "RegistryWriter", lambda uri: VersionRegistry(registry))
    monkeypatch.setattr(
        promotion,
        "replace_champion",
        lambda platform, _, version, *__: platform.registry.set_alias("champion", version),
    )
    monkeypatch.setattr(evaluation_sets, "pin_first_anchor", lambda *_: None)
    monkeypatch.setattr(verdict_page, "publish", lambda *_, **__: None)
    retrain.apply_verdict(platform, "3", "1", gate.GateVerdict("promote", ["better"], {}))
    accepted = baseline.current(platform.engine, "3")
    assert accepted is not None and accepted.since <= at < accepted.until
    assert baseline.current(platform.engine, "1") is None
