"""What feedback brings: each label once, the audit sample above complaints, doubtful ones kept apart with the reason."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from monitored import held_out
from sqlalchemy import Engine, insert, select

from digits.images import Images
from digits.storage import feedback, predictions
from digits.storage.feedback import FeedbackPolicy, Labelled, triage
from digits.storage.predictions import AUDITOR

NOW = datetime(2026, 1, 5, 8, tzinfo=UTC)
ALL_TRAIN, ALL_HELD_OUT = FeedbackPolicy(hold_out=0), FeedbackPolicy(hold_out=1 - 1e-9)


def answered(
    engine: Engine,
    images: Images,
    digits: Sequence[int],
    probability: float = 0.6,
    audit: bool = False,
    version: str = "7",
    ids: list[str] | None = None,
) -> list[str]:
    """Answers in the log, as the service writes them; their ids."""
    ids = ids or predictions.new_ids(len(images))
    rows = [
        {
            "id": id,
            "at": NOW + timedelta(seconds=i),
            "version": version,
            "digit": int(digit),
            "probability": probability,
            "probabilities": np.full(10, 0.1, np.float32).tobytes(),
            "image": image.tobytes(),
            "route": "/classify",
            "audit": audit,
        }
        for i, (id, image, digit) in enumerate(zip(ids, images, digits, strict=True))
    ]
    with engine.begin() as connection:
        connection.execute(insert(predictions.predictions), rows)
    return ids


def one(number: int, digit: int = 3, answered: int = 3, probability: float = 0.6, source: str = "api") -> Labelled:
    return Labelled(
        f"id{number}", feedback.digest(bytes([number])), digit, answered, probability, source, source == AUDITOR
    )


def test_each_label_is_taken_once(engine: Engine) -> None:
    images, labels = held_out()
    ids = answered(engine, images[:20], labels[:20])
    for id, digit in zip(ids[:12], labels[:12], strict=True):
        predictions.label(engine, id, int(digit), "api")
    assert feedback.waiting(engine) == 12
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 12}
    assert feedback.waiting(engine) == 0
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {}
    split = feedback.training(engine)
    assert split is not None
    assert np.array_equal(split.images, images[:12]) and np.array_equal(split.labels, labels[:12])


def test_nothing_is_noted_as_taken_when_taking_dies_on_the_way(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = held_out()
    for id, digit in zip(answered(engine, images[:9], labels[:9]), labels, strict=False):
        predictions.label(engine, id, int(digit), "api")
    monkeypatch.setattr(feedback, "_AT_ONCE", 4)
    monkeypatch.setattr(feedback, "_value", _dies_after(6, feedback._value))
    with pytest.raises(KeyboardInterrupt):
        feedback.ingest_feedback(engine, ALL_TRAIN)
    monkeypatch.undo()
    assert feedback.training(engine) is None and feedback.waiting(engine) == 9
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 9}


def _dies_after(times: int, function):  # type: ignore[no-untyped-def]
    calls = iter(range(times))

    def dying(*arguments):  # type: ignore[no-untyped-def]
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return dying


def test_what_was_taken_outlives_the_prediction_log(engine: Engine) -> None:
    """And labels that come later are new, though SQLite may number them from 1 again."""
    images, labels = held_out()
    (first,) = answered(engine, images[:1], labels[:1])
    predictions.label(engine, first, int(labels[0]), "api")
    feedback.ingest_feedback(engine, ALL_TRAIN)
    predictions.forget(engine, NOW + timedelta(days=1))
    (second,) = answered(engine, images[1:2], labels[1:2])
    predictions.label(engine, second, int(labels[1]), "api")
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 1}
    split = feedback.training(engine)
    assert split is not None and split.labels.tolist() == labels[:2].tolist()


def test_a_corrected_label_replaces_the_one_that_was_taken(engine: Engine) -> None:
    images, _ = held_out()
    (id,) = answered(engine, images[:1], [1])
    predictions.label(engine, id, 4, "api")
    feedback.ingest_feedback(engine, ALL_TRAIN)
    predictions.label(engine, id, 9, "api")
    assert feedback.waiting(engine) == 1
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"train": 1}
    split = feedback.training(engine)
    assert split is not None and split.labels.tolist() == [9]


def test_the_auditor_counts_more_than_a_later_complaint(engine: Engine) -> None:
    images, _ = held_out()
    ids = answered(engine, images[:2], [1, 1], audit=True)
    predictions.label(engine, ids[0], 4, AUDITOR)
    predictions.label(engine, ids[0], 5, "api")
    predictions.label(engine, ids[1], 5, "api")  # drawn for the audit, but not labelled by an auditor
    window = predictions.read_window(engine, NOW)
    assert window.labels.tolist() == [4, 5]
    assert window.audited.tolist() == [True, False]


@pytest.mark.parametrize(("policy", "part"), [(ALL_TRAIN, "train"), (ALL_HELD_OUT, "hold-out")])
def test_the_auditor_displaces_a_complaint_that_was_taken_before(
    engine: Engine, policy: feedback.FeedbackPolicy, part: str
) -> None:
    images, _ = held_out()
    (first,) = answered(engine, images[:1], [1])
    predictions.label(engine, first, 4, "api")
    assert feedback.ingest_feedback(engine, policy) == {"train": 1}
    (second,) = answered(engine, images[:1], [1], audit=True)
    predictions.label(engine, second, 5, AUDITOR)
    assert feedback.ingest_feedback(engine, policy) == {part: 1}
    trained, judging = feedback.training(engine), feedback.audited_traffic(engine)
    assert judging is not None and judging.labels.tolist() == [5]
    assert (trained is not None and trained.labels.tolist() == [5]) if part == "train" else trained is None


def test_a_complaint_against_a_sure_answer_waits_in_quarantine_with_the_reason(engine: Engine) -> None:
    images, _ = held_out()
    (id,) = answered(engine, images[:1], [1], probability=0.997)
    predictions.label(engine, id, 7, "page")
    assert feedback.ingest_feedback(engine, ALL_TRAIN) == {"quarantine": 1}
    assert feedback.training(engine) is None
    with engine.connect() as connection:
        row = connection.execute(select(feedback.ingested)).one()
    assert (row.digit, row.source, row.reason) == (7, "page", "the version was sure of a 1 (0.9970)")
    assert row.image == images[0].tobytes()


def test_an_auditor_lets_labels_out_of_quarantine_either_way(engine: Engine) -> None:
    images, _ = held_out()
    right, slip, unseen = answered(engine, images[:3], [1, 1, 1], probability=0.997)
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
    assert feedback.audited_traffic(engine) is None  # complaints judge nobody, whoever has checked them
    predictions.forget(engine, NOW + timedelta(days=1))
    assert feedback.quarantined(engine) == []


def test_an_auditor_is_never_doubted_nor_capped() -> None:
    against = [one(i, digit=7, probability=1.0, source=AUDITOR) for i in range(5)]
    strict = FeedbackPolicy(hold_out=0, most_per_source=1)
    assert {decision.part for decision in triage(against, {}, strict)} == {"train"}


def test_one_source_brings_no_more_than_the_cap_and_others_are_not_held_back() -> None:
    flood = [one(i, source="bot") for i in range(10)]
    people = [one(100 + i, source="page") for i in range(3)]
    decisions = triage([*flood, *people], {}, FeedbackPolicy(hold_out=0, most_per_source=4))
    assert [decision.part for decision in decisions[:10]].count("train") == 4
    assert {decision.part for decision in decisions[10:]} == {"train"}
    assert "bot has brought 4 already" in {decision.reason for decision in decisions}


def test_the_same_image_counts_once_and_contradictions_are_kept_apart() -> None:
    twice = triage([one(1), replace(one(1), id="later")], {}, ALL_TRAIN)
    assert [decision.part for decision in twice] == ["train", "left out"]
    disputed = triage([one(1), replace(one(1), id="other", digit=5)], {}, ALL_TRAIN)
    assert [decision.part for decision in disputed] == ["quarantine", "quarantine"]
    checked = replace(one(1, source=AUDITOR), id="audit", digit=5)
    settled = triage([one(1), checked], {}, ALL_TRAIN)
    assert [decision.part for decision in settled] == ["quarantine", "train"]
    known = triage([one(1)], {one(1).digest: 8}, ALL_TRAIN)
    assert known[0].part == "quarantine" and "in use as a 8" in known[0].reason


def test_the_hold_out_is_drawn_by_the_image_alone() -> None:
    many = [one(i % 256, digit=3, source=AUDITOR) for i in range(256)]
    parts = [decision.part for decision in triage(many, {}, FeedbackPolicy(hold_out=0.3))]
    assert 0.2 < parts.count("hold-out") / len(parts) < 0.4
    assert {decision.part for decision in triage([one(i) for i in range(256)], {}, FeedbackPolicy(hold_out=0.3))} == {
        "train"
    }
    backwards = [decision.part for decision in triage(many[::-1], {}, FeedbackPolicy(hold_out=0.3))]
    assert backwards[::-1] == parts


def test_only_the_audit_sample_judges_and_a_share_of_it_is_held_out(engine: Engine) -> None:
    images, labels = held_out()
    audit = answered(engine, images[:60], labels[:60], audit=True)
    plain = answered(engine, images[60:120], labels[60:120])
    for id, digit in zip([*audit, *plain], labels[:120], strict=True):
        predictions.label(engine, id, int(digit), AUDITOR if id in audit else "api")
    feedback.ingest_feedback(engine, FeedbackPolicy(hold_out=0.5))
    judging, training = feedback.audited_traffic(engine), feedback.training(engine)
    assert judging is not None and training is not None
    drawn = {image.tobytes() for image in images[:60]}
    assert {image.tobytes() for image in judging.images} == drawn
    learned = drawn & {image.tobytes() for image in training.images}
    assert 15 < len(drawn) - len(learned) < 45  # held out, whichever version is trained
