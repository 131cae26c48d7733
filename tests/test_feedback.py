"""Labels from feedback: each is ingested once, audits replace complaints, doubtful ones go to quarantine with the reason."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from monitored import held_out
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from digits.images import Images
from digits.storage import feedback, predictions
from digits.storage.feedback import FeedbackPolicy, IngestedLabel, Part
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch

NOW = datetime(2026, 1, 5, 8, tzinfo=UTC)
ALL_TRAIN, ALL_HELD_OUT = FeedbackPolicy(hold_out=0), FeedbackPolicy(hold_out=1 - 1e-9)


def predicted(
    engine: Engine,
    images: Images,
    digits: Sequence[int],
    probability: float = 0.6,
    audit: bool = False,
    version: str = "7",
    ids: list[str] | None = None,
) -> list[str]:
    """Records predictions as the service does; their ids."""
    ids = ids or predictions.new_ids(len(images))
    for i, (id, image, digit) in enumerate(zip(ids, images, digits, strict=True)):
        probabilities = np.full((1, 10), (1 - probability) / 9, np.float32)
        probabilities[0, digit] = probability
        at = NOW + timedelta(seconds=i)
        batch = PredictionBatch([id], at, version, image[None], probabilities, "/classify")
        predictions.append(engine, [batch], audit_sample_rate=float(audit))
    return ids


def one(number: int, label: int = 3, probability: float = 0.6, source: str = "api", id: str = "") -> IngestedLabel:
    return IngestedLabel(
        client="",
        route="/classify",
        prediction_id=id or f"id{number}",
        digest=feedback.digest(bytes([number])),
        label=label,
        predicted=3,
        probability=probability,
        source=source,
        audited=source == AUDITOR,
    )


def triage(new: list[IngestedLabel], known: dict[str, int], policy: FeedbackPolicy) -> list[Part]:
    """The part that each label is assigned to."""
    feedback.triage(new, known, policy)
    return [one.part for one in new]


def test_each_label_is_ingested_once(engine: Engine) -> None:
    images, labels = held_out()
    ids = predicted(engine, images[:20], labels[:20])
    for id, digit in zip(ids[:12], labels[:12], strict=True):
        predictions.label(engine, id, int(digit), "api")
    assert feedback.waiting(engine) == 12
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 12}
    assert feedback.waiting(engine) == 0
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {}
    split = feedback.training(engine)
    assert split is not None
    assert np.array_equal(split.images, images[:12]) and np.array_equal(split.labels, labels[:12])


def test_a_label_that_arrives_during_the_ingestion_is_ingested_the_next_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = held_out()
    first, second = predicted(engine, images[:2], labels[:2])
    predictions.label(engine, first, int(labels[0]), "api")
    read = predictions.read_labelled

    def labelled_meanwhile(*arguments: Any) -> predictions.PredictionWindow:
        if engine.dialect.name == "postgresql":  # SQLite has one writer
            predictions.label(engine, second, int(labels[1]), "api")
        return read(*arguments)

    monkeypatch.setattr(predictions, "read_labelled", labelled_meanwhile)
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 1}
    monkeypatch.undo()
    predictions.label(engine, second, int(labels[1]), "api")
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 1}


def test_an_interrupted_ingestion_leaves_every_label_new(engine: Engine) -> None:
    images, labels = held_out()
    for id, digit in zip(predicted(engine, images[:9], labels[:9]), labels, strict=False):
        predictions.label(engine, id, int(digit), "api")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    event.listen(Session, "after_flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        feedback.ingest_feedback(engine, ALL_TRAIN)
    event.remove(Session, "after_flush", interrupt)
    assert feedback.training(engine) is None and feedback.waiting(engine) == 9
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 9}


def test_ingested_labels_stay_when_their_predictions_are_deleted(engine: Engine) -> None:
    """Later labels are new, though SQLite may number them from 1 again."""
    images, labels = held_out()
    (first,) = predicted(engine, images[:1], labels[:1])
    predictions.label(engine, first, int(labels[0]), "api")
    feedback.ingest_feedback(engine, ALL_TRAIN)
    predictions.delete_before(engine, NOW + timedelta(days=1))
    (second,) = predicted(engine, images[1:2], labels[1:2])
    predictions.label(engine, second, int(labels[1]), "api")
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 1}
    split = feedback.training(engine)
    assert split is not None and split.labels.tolist() == labels[:2].tolist()


def test_a_corrected_label_replaces_the_ingested_one(engine: Engine) -> None:
    images, _ = held_out()
    (id,) = predicted(engine, images[:1], [1])
    predictions.label(engine, id, 4, "api")
    feedback.ingest_feedback(engine, ALL_TRAIN)
    predictions.label(engine, id, 9, "api")
    assert feedback.waiting(engine) == 1
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 1}
    split = feedback.training(engine)
    assert split is not None and split.labels.tolist() == [9]


def test_an_auditors_label_has_precedence_over_a_later_complaint(engine: Engine) -> None:
    images, _ = held_out()
    ids = predicted(engine, images[:2], [1, 1], audit=True)
    predictions.label(engine, ids[0], 4, AUDITOR)
    predictions.label(engine, ids[0], 5, "api")
    predictions.label(engine, ids[1], 5, "api")  # drawn for the audit, but not labelled by an auditor
    window = predictions.read_window(engine, NOW)
    assert window.labels.tolist() == [4, 5]
    assert window.audited.tolist() == [True, False]


@pytest.mark.parametrize(("policy", "part"), [(ALL_TRAIN, "train"), (ALL_HELD_OUT, "hold-out")])
def test_an_auditors_label_replaces_an_ingested_complaint(engine: Engine, policy: FeedbackPolicy, part: str) -> None:
    images, _ = held_out()
    (first,) = predicted(engine, images[:1], [1])
    predictions.label(engine, first, 4, "api")
    assert feedback.ingest_feedback(engine, policy) == {"train": 1}
    (second,) = predicted(engine, images[:1], [1], audit=True)
    predictions.label(engine, second, 5, AUDITOR)
    assert feedback.ingest_feedback(engine, policy) == {part: 1}
    trained, judging = feedback.training(engine), feedback.audited_traffic(engine)
    assert judging is not None and judging.labels.tolist() == [5]
    assert (trained is not None and trained.labels.tolist() == [5]) if part == "train" else trained is None


def test_a_label_that_contradicts_a_confident_prediction_is_quarantined_with_the_reason(engine: Engine) -> None:
    images, _ = held_out()
    (id,) = predicted(engine, images[:1], [1], probability=0.997)
    predictions.label(engine, id, 7, "page")
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"quarantine": 1}
    assert feedback.training(engine) is None
    with engine.connect() as connection:
        row = connection.execute(select(IngestedLabel)).one()
    assert (row.label, row.source, row.reason) == (7, "page", "the version predicted 1 with 0.9970")
    assert row.image == images[0].tobytes()


def test_an_auditor_confirms_or_corrects_a_quarantined_label(engine: Engine) -> None:
    images, _ = held_out()
    right, slip, unseen = predicted(engine, images[:3], [1, 1, 1], probability=0.997)
    for id in (right, slip, unseen):
        predictions.label(engine, id, 7, "page")
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"quarantine": 3}
    waiting = feedback.quarantined(engine)
    assert [id for id, _ in waiting] == [right, slip, unseen]
    assert np.array_equal(waiting[1][1], images[1])
    predictions.label(engine, right, 7, AUDITOR)
    predictions.label(engine, slip, 1, AUDITOR)
    assert [id for id, _ in feedback.quarantined(engine)] == [unseen]
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 2}
    split = feedback.training(engine)
    assert split is not None and split.labels.tolist() == [7, 1]
    assert feedback.audited_traffic(engine) is None  # the audit sample alone judges candidates
    predictions.delete_before(engine, NOW + timedelta(days=1))
    assert feedback.quarantined(engine) == []


def test_an_auditors_labels_are_neither_doubted_nor_capped() -> None:
    against = [one(i, label=7, probability=1.0, source=AUDITOR) for i in range(5)]
    strict = FeedbackPolicy(hold_out=0, max_per_source=1)
    assert set(triage(against, {}, strict)) == {"train"}


def test_the_cap_applies_to_each_source_separately() -> None:
    flood = [one(i, source="bot") for i in range(10)]
    people = [one(100 + i, source="page") for i in range(3)]
    parts = triage([*flood, *people], {}, FeedbackPolicy(hold_out=0, max_per_source=4))
    assert parts[:10].count("train") == 4
    assert set(parts[10:]) == {"train"}
    assert "bot exceeds 4 labels per ingestion" in {label.reason for label in flood}


def test_an_image_is_used_once_and_contradicting_labels_are_quarantined() -> None:
    assert triage([one(1), one(1, id="later")], {}, ALL_TRAIN) == ["train", "left out"]
    assert triage([one(1), one(1, id="other", label=5)], {}, ALL_TRAIN) == ["quarantine", "quarantine"]
    assert triage([one(1), one(1, id="audit", label=5, source=AUDITOR)], {}, ALL_TRAIN) == ["quarantine", "train"]
    known = one(1)
    assert triage([known], {known.digest: 8}, ALL_TRAIN) == ["quarantine"] and "in use as a 8" in known.reason


def test_the_hold_out_depends_on_the_image_alone() -> None:
    many = [one(i % 256, label=3, source=AUDITOR) for i in range(256)]
    parts = triage(many, {}, FeedbackPolicy(hold_out=0.3))
    assert 0.2 < parts.count("hold-out") / len(parts) < 0.4
    assert set(triage([one(i) for i in range(256)], {}, FeedbackPolicy(hold_out=0.3))) == {"train"}
    assert triage(many[::-1], {}, FeedbackPolicy(hold_out=0.3))[::-1] == parts


def test_the_audit_sample_alone_judges_and_a_share_of_it_is_held_out(engine: Engine) -> None:
    images, labels = held_out()
    audit = predicted(engine, images[:60], labels[:60], audit=True)
    plain = predicted(engine, images[60:120], labels[60:120])
    for id, digit in zip([*audit, *plain], labels[:120], strict=True):
        predictions.label(engine, id, int(digit), AUDITOR if id in audit else "api")
    feedback.ingest_feedback(engine, FeedbackPolicy(hold_out=0.5))
    judging, training = feedback.audited_traffic(engine), feedback.training(engine)
    assert judging is not None and training is not None
    drawn = {image.tobytes() for image in images[:60]}
    assert {image.tobytes() for image in judging.images} == drawn
    learned = drawn & {image.tobytes() for image in training.images}
    assert 15 < len(drawn) - len(learned) < 45
