"""What to label next: each image in one queue, the audit sample first, and nothing that was labelled already."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import Engine, select

from digits.images import NO_DIGIT, Images
from digits.storage import audit, feedback, label_queue, predictions, suspected_labels
from digits.storage.feedback import FeedbackPolicy, IngestedLabel
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch, UnknownPrediction, new_ids
from digits.storage.suspected_labels import Suspect

NOW = datetime.now(UTC)
SINCE = NOW - timedelta(days=1)


def images(count: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def answered(
    engine: Engine,
    confidence: list[float],
    audit_sample_rate: float = 0.0,
    version: str = "7",
    seed: int = 0,
    clients: tuple[str, ...] = (),
) -> list[str]:
    """Answers "3" with these probabilities and the digit score 5; their ids."""
    probabilities = np.array([[(1 - p) / 9] * 3 + [p] + [(1 - p) / 9] * 6 for p in confidence], np.float32)
    count = len(confidence)
    scores = np.full(count, 5, np.float32)
    batch = PredictionBatch(
        new_ids(count), NOW, version, images(count, seed), probabilities, "/classify", clients, scores
    )
    predictions.append(engine, [batch], audit_sample_rate)
    return batch.ids


def waiting(engine: Engine, client: str | None = None) -> dict[label_queue.Queue, list[str]]:
    return label_queue.waiting(engine, "7", SINCE, 0.9, client)


def test_an_auditor_gets_all_queues_and_others_those_in_which_their_labels_count(engine: Engine) -> None:
    drawn = answered(engine, [0.5, 0.99], audit_sample_rate=1)
    former = answered(engine, [0.99], audit_sample_rate=1, version="6", seed=1)
    rest = answered(engine, [0.99, 0.7, 0.4, 0.4, 0.95], seed=2)
    label_queue.replace_disagreements(engine, "8", [rest[4], rest[1]])
    predictions.label(engine, rest[0], 5, "somebody")
    feedback.ingest_feedback(engine, FeedbackPolicy(confident=0.9))
    suspected_labels.replace(engine, "0" * 16, [Suspect(images(1, 9).tobytes(), 4, 9, 0.01)])
    found = waiting(engine)
    assert set(found["audit"][:2]) == set(drawn) and found["audit"][2:] == former  # the served version first
    assert found["uncertain"] in (
        [rest[2], rest[1]],
        [rest[3], rest[1]],
    )  # the least confident first, one of each image
    assert found["disagreement"] == [rest[4]] and found["quarantine"] == [rest[0]]
    assert found["suspected"] == [feedback.digest(images(1, 9).tobytes())]
    queues = {id: queue for queue, ids in found.items() for id in ids}
    shown = label_queue.images(engine, queues)
    assert list(shown) == list(queues)
    assert np.array_equal(shown[found["audit"][0]], predictions.find(engine, found["audit"][0]).images[0])
    assert np.array_equal(shown[found["suspected"][0]], images(1, 9)[0])
    assert not any(waiting(engine, "nurse").values())  # no answer was given to this key


def test_others_than_auditors_get_answers_to_their_own_key_only(engine: Engine) -> None:
    clients = ("ward", "ward/3", "ward-2", "", "ward", "form")
    ids = answered(engine, [0.5, 0.6, 0.4, 0.3, 0.95, 0.95], 1, clients=clients)
    label_queue.replace_disagreements(engine, "8", ids[4:])
    found = waiting(engine, "ward")
    assert (found["uncertain"], found["disagreement"]) == (ids[:2], [ids[4]])
    assert not any(found[queue] for queue in label_queue.OF_AUDITORS)


def test_what_was_drawn_for_the_audit_sample_is_in_no_other_queue(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of the least certain of them would make accuracy look worse than it is."""
    monkeypatch.setattr(label_queue, "MAX_LENGTH", 2)
    drawn = answered(engine, [0.5, 0.6, 0.4, 0.99], audit_sample_rate=1)
    rest = answered(engine, [0.7, 0.95], seed=1)
    label_queue.replace_disagreements(engine, "8", [drawn[3], rest[1]])
    found = waiting(engine)
    assert len(found["audit"]) == 2 and set(found["audit"]) < set(drawn)
    assert (found["uncertain"], found["disagreement"]) == ([rest[0]], [rest[1]])


def test_complaints_beyond_the_end_of_the_queue_do_not_bias_the_audit_sample(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In quarantine are the errors of the version: to label those of the audit sample first would measure an accuracy of 0."""
    monkeypatch.setattr(label_queue, "MAX_LENGTH", 20)
    drawn = answered(engine, [0.99] * 100, audit_sample_rate=1)
    (other,) = answered(engine, [0.99], seed=1)
    for id in [*drawn[:50], other]:
        predictions.label(engine, id, 8, "somebody")
    assert feedback.ingest_feedback(engine, FeedbackPolicy(confident=0.9)) == {"quarantine": 51}
    found = waiting(engine)
    assert (len(found["audit"]), found["quarantine"]) == (20, [other])
    assert [id for id, _ in feedback.quarantined(engine)] == [other]  # nor does `digits audit --quarantine`
    for ids in found.values():
        for id in ids:
            label_queue.label(engine, id, 8 if id in drawn[:50] else 3, AUDITOR)
    measured = audit.answers(engine, "7", SINCE, NOW + timedelta(days=1))
    assert {one.id for one in measured} == set(found["audit"])
    assert 0.1 < np.mean([one.is_right for one in measured]) < 0.9


def test_the_next_of_a_queue_are_drawn_from_its_first_and_the_audit_sample_keeps_its_order() -> None:
    ids = [f"{n:03}" for n in range(100)]
    assert label_queue.draw("audit", ids, 10) == ids[:10]
    drawn = [label_queue.draw("uncertain", ids, 10) for _ in range(50)]
    assert all(len(set(one)) == 10 for one in drawn)
    assert set().union(*drawn) == set(ids[:40])
    assert sorted(label_queue.draw("suspected", ids[:3], 10)) == ids[:3]


def test_disagreements_that_are_labelled_or_gone_leave_room_for_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_queue, "MAX_LENGTH", 2)
    ids = answered(engine, [0.99] * 5)
    label_queue.replace_disagreements(engine, "8", [*ids, *new_ids(3)])
    for id in ids[3:]:
        label_queue.label(engine, id, 3, "somebody")
    assert waiting(engine)["disagreement"] == [ids[2], ids[1]]


def test_the_number_of_audit_labels_is_that_of_the_answers_that_count(engine: Engine) -> None:
    ids = answered(engine, [0.99] * 3, audit_sample_rate=1)
    (repeated,) = answered(engine, [0.99], audit_sample_rate=1)  # the same image as the first
    (other,) = answered(engine, [0.99], audit_sample_rate=1, version="6", seed=1)
    label_queue.label(engine, ids[0], 5, "somebody")
    feedback.ingest_feedback(engine, FeedbackPolicy())  # as no label of an auditor
    for id, label in zip([*ids, repeated, other], (3, NO_DIGIT, 4, 3, 3), strict=True):
        label_queue.label(engine, id, label, AUDITOR)

    def measured_on() -> int:
        return len(audit.answers(engine, "7", SINCE, NOW + timedelta(days=1)))

    assert audit.count(engine, "7") == measured_on() == 2
    feedback.ingest_feedback(engine, FeedbackPolicy())
    assert audit.count(engine, "7") == measured_on() == 2
    label_queue.label(engine, ids[2], NO_DIGIT, AUDITOR)
    assert audit.count(engine, "7") == measured_on() == 1


def test_what_is_labelled_leaves_the_queue_and_returns_when_the_label_is_taken_back(engine: Engine) -> None:
    (drawn,) = answered(engine, [0.99], audit_sample_rate=1)
    (uncertain,) = answered(engine, [0.5], seed=1)
    assert (waiting(engine)["audit"], waiting(engine)["uncertain"]) == ([drawn], [uncertain])
    label_queue.label(engine, drawn, 3, "somebody")
    label_queue.label(engine, uncertain, 3, "somebody")
    assert (waiting(engine)["audit"], waiting(engine)["uncertain"]) == ([drawn], [])  # an audit label is an auditor's
    label_queue.label(engine, drawn, 8, AUDITOR)
    assert waiting(engine)["audit"] == [] and audit.count(engine, "7") == 1
    assert label_queue.withdraw(engine, drawn, AUDITOR)
    assert waiting(engine)["audit"] == [drawn] and audit.count(engine, "7") == 0
    assert predictions.find(engine, drawn).labels.tolist() == [3]  # what others said counts again
    assert label_queue.withdraw(engine, drawn, AUDITOR)  # nothing is left to take back
    label_queue.label(engine, drawn, 8, AUDITOR)
    feedback.ingest_feedback(engine, FeedbackPolicy())
    assert audit.count(engine, "7") == 1
    assert not label_queue.withdraw(engine, drawn, AUDITOR)  # a retraining has it
    assert predictions.find(engine, drawn).labels.tolist() == [8]


def test_an_auditor_takes_back_only_the_label_of_that_number(engine: Engine) -> None:
    """All auditors are one source: what one takes back must not be what another said."""
    (id,) = answered(engine, [0.99], audit_sample_rate=1)
    first = label_queue.label(engine, id, 7, AUDITOR)
    assert label_queue.label(engine, id, 7, AUDITOR) is None  # another says the same
    second = label_queue.label(engine, id, 8, AUDITOR)
    assert first is not None and second is not None
    assert label_queue.withdraw(engine, id, AUDITOR, first)
    assert predictions.find(engine, id).labels.tolist() == [8]
    assert label_queue.withdraw(engine, id, "somebody", second) and label_queue.withdraw(engine, id, AUDITOR, first)
    assert predictions.find(engine, id).labels.tolist() == [8]  # neither has such a label
    feedback.ingest_feedback(engine, FeedbackPolicy())
    assert not label_queue.withdraw(engine, id, AUDITOR, second)
    with pytest.raises(UnknownPrediction):
        label_queue.withdraw(engine, "0" * 32, AUDITOR)


def test_the_label_no_digit_neither_measures_accuracy_nor_is_trained_on(engine: Engine) -> None:
    ids = answered(engine, [0.99, 0.98, 0.97], audit_sample_rate=1)
    for id in ids[:2]:
        label_queue.label(engine, id, NO_DIGIT, AUDITOR)
    label_queue.label(engine, ids[2], 3, AUDITOR)

    def measured_on() -> list[tuple[str, bool]]:
        return [(one.id, one.is_right) for one in audit.answers(engine, "7", SINCE, NOW + timedelta(days=1))]

    assert measured_on() == [(ids[2], True)]
    assert feedback.ingest_feedback(engine, FeedbackPolicy(hold_out=0)) == {"train": 1, "left out": 2}
    assert measured_on() == [(ids[2], True)]
    predictions.delete_before(engine, NOW + timedelta(days=1))  # the ingested labels remain
    assert measured_on() == [(ids[2], True)]
    split, traffic = feedback.training(engine), feedback.audited_traffic(engine)
    assert split is not None and split.labels.tolist() == [3]
    assert traffic is not None and traffic.labels.tolist() == [3]


def test_no_digit_is_neither_doubted_nor_a_reason_to_retrain(engine: Engine) -> None:
    sure, uncertain = answered(engine, [0.999, 0.5])
    label_queue.label(engine, sure, NO_DIGIT, "somebody")
    label_queue.label(engine, uncertain, 4, "somebody")
    assert feedback.waiting(engine) == 1
    label_queue.label(engine, uncertain, NO_DIGIT, "somebody")
    assert feedback.waiting(engine) == 0
    assert feedback.ingest_feedback(engine, FeedbackPolicy(confident=0.9)) == {"left out": 2}


def test_a_digit_that_an_auditor_corrects_to_no_digit_leaves_the_accuracy(engine: Engine) -> None:
    (id,) = answered(engine, [0.99], audit_sample_rate=1)
    label_queue.label(engine, id, 4, AUDITOR)
    feedback.ingest_feedback(engine, FeedbackPolicy())
    assert [one.is_right for one in audit.answers(engine, "7", SINCE, NOW + timedelta(days=1))] == [False]
    label_queue.label(engine, id, NO_DIGIT, AUDITOR)
    assert audit.answers(engine, "7", SINCE, NOW + timedelta(days=1)) == []


def test_an_auditors_no_digit_replaces_what_others_called_a_digit(engine: Engine) -> None:
    (id,) = answered(engine, [0.6])
    label_queue.label(engine, id, 3, "somebody")
    assert feedback.ingest_feedback(engine, FeedbackPolicy()) == {"train": 1}
    label_queue.label(engine, id, NO_DIGIT, AUDITOR)
    assert feedback.ingest_feedback(engine, FeedbackPolicy()) == {"left out": 1}
    assert feedback.training(engine) is None
    with engine.connect() as connection:
        reasons = connection.scalars(select(IngestedLabel.reason)).all()
    assert reasons == ["the image shows no digit, and candidates are trained and judged on digits"]


def test_a_decision_on_a_training_image_is_an_auditors_and_outlives_the_list(engine: Engine) -> None:
    first, second, third = (image.tobytes() for image in images(3))
    suspects = [Suspect(first, 4, 9, 0.2), Suspect(second, 1, 7, 0.1), Suspect(third, 5, 3, 0.3)]
    assert suspected_labels.replace(engine, "a" * 16, suspects) == 3
    ids = suspected_labels.waiting(engine, 9)
    assert ids == [feedback.digest(image) for image in (second, first, third)]
    with pytest.raises(UnknownPrediction):
        label_queue.label(engine, ids[0], 7, "somebody")
    for id, decision in zip(ids, (7, 4, NO_DIGIT), strict=True):
        label_queue.label(engine, id, decision, AUDITOR)
    assert suspected_labels.corrections(engine) == {second: 7, third: NO_DIGIT}  # the first label was right
    assert suspected_labels.replace(engine, "b" * 16, suspects) == 0 and waiting(engine)["suspected"] == []
    assert label_queue.withdraw(engine, ids[0], AUDITOR)
    assert suspected_labels.corrections(engine) == {third: NO_DIGIT} and suspected_labels.waiting(engine, 9) == [ids[0]]
    assert suspected_labels.replace(engine, "b" * 16, []) == 0 and suspected_labels.waiting(engine, 9) == []


def test_suspected_labels_of_a_check_that_was_asked_for_earlier_replace_nothing(engine: Engine) -> None:
    """Whichever of two checks ends first."""
    older, newer = ([Suspect(image.tobytes(), 4, 9, 0.01)] for image in images(2, 9))
    now = datetime.now(UTC)
    assert suspected_labels.replace(engine, "b" * 16, newer, now) == 1
    assert suspected_labels.replace(engine, "a" * 16, older, now - timedelta(seconds=1)) is None
    assert suspected_labels.waiting(engine, 9) == [suspected_labels.digest(newer[0].image)]
    assert suspected_labels.replace(engine, "b" * 16, newer, now) == 1  # an attempt that is repeated
    assert suspected_labels.replace(engine, "a" * 16, older, now + timedelta(seconds=1)) == 1
    assert suspected_labels.waiting(engine, 9) == [suspected_labels.digest(older[0].image)]


def test_an_image_that_the_log_no_longer_has_is_left_out(engine: Engine) -> None:
    kept, gone = answered(engine, [0.5])[0], new_ids(1)[0]
    queues: dict[str, label_queue.Queue] = {gone: "quarantine", kept: "uncertain", "f" * 32: "suspected"}
    assert list(label_queue.images(engine, queues)) == [kept]


def test_ids_begin_with_the_time(engine: Engine) -> None:
    before = datetime.now(UTC)
    (id,) = new_ids(1)
    assert predictions.first_id_at(before) <= id < predictions.first_id_at(before + timedelta(seconds=5))
