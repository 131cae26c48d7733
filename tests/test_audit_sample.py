"""The labelled audit sample of a version: the auditor's last label counts, whatever else was said, and as long as it is known."""

from datetime import timedelta

import numpy as np
from logged import NOON, answers
from sqlalchemy import Engine

from digits.storage import audit, feedback, predictions
from digits.storage.feedback import FeedbackPolicy
from digits.storage.labels import AUDITOR

EVER = NOON - timedelta(days=1), NOON + timedelta(days=30)


def test_only_labels_of_auditors_on_the_audit_sample_of_the_version_count(engine: Engine) -> None:
    sample, other = answers(3)._replace(clients=["ann", "", "bob"]), answers(2, version="2", seed=1)
    predictions.append(engine, [sample, other], audit_sample_rate=1.0)
    rest = answers(2, seed=2)
    predictions.append(engine, [rest], audit_sample_rate=0.0)
    digits = sample.probabilities.argmax(axis=1).tolist()
    assert audit.last_label(engine) is None
    predictions.label(engine, sample.ids[0], (digits[0] + 1) % 10, AUDITOR)
    predictions.label(engine, sample.ids[0], digits[0], AUDITOR)
    predictions.label(engine, sample.ids[0], (digits[0] + 2) % 10, "somebody")
    predictions.label(engine, sample.ids[1], digits[1], "somebody")
    predictions.label(engine, sample.ids[2], (digits[2] + 1) % 10, AUDITOR)
    for id in (*other.ids, *rest.ids):
        predictions.label(engine, id, 3, AUDITOR)
    found = audit.answers(engine, "1", *EVER)
    assert [(one.id, one.client, one.is_right) for one in found] == [
        (sample.ids[0], "ann", True),
        (sample.ids[2], "bob", False),
    ]
    assert np.isclose(found[0].probability, sample.probabilities[0].max()) and found[0].at == NOON
    assert audit.answers(engine, "1", NOON + timedelta(seconds=1), EVER[1]) == []
    assert audit.answers(engine, "1", EVER[0], NOON) == []
    assert audit.last_label(engine) is not None


def test_an_ingested_label_outlives_its_answer_and_a_correction_replaces_it(engine: Engine) -> None:
    old, new = answers(2), answers(2, at=NOON + timedelta(days=2), seed=1)
    predictions.append(engine, [old, new], audit_sample_rate=1.0)
    for batch in (old, new):
        for id, digit in zip(batch.ids, batch.probabilities.argmax(axis=1).tolist(), strict=True):
            predictions.label(engine, id, digit, AUDITOR)
    feedback.ingest_feedback(engine, FeedbackPolicy())
    assert predictions.delete_before(engine, NOON + timedelta(days=1)) == 2
    predictions.label(engine, new.ids[0], (int(new.probabilities[0].argmax()) + 1) % 10, AUDITOR)
    found = audit.answers(engine, "1", *EVER)
    assert [one.is_right for one in found] == [one.id != new.ids[0] for one in found]
    assert sorted(one.id for one in found) == sorted([*old.ids, *new.ids])


def test_an_image_that_a_probe_sends_again_and_again_counts_once(engine: Engine) -> None:
    probe, other = answers(1), answers(2, seed=1)
    again = [probe._replace(ids=predictions.new_ids(1), at=NOON + timedelta(hours=hour)) for hour in (3, 1, 2)]
    predictions.append(engine, [other, *again, probe], audit_sample_rate=1.0)
    for batch in (other, *again, probe):
        for id, digit in zip(batch.ids, batch.probabilities.argmax(axis=1).tolist(), strict=True):
            predictions.label(engine, id, digit, AUDITOR)
    assert {one.id for one in audit.answers(engine, "1", *EVER)} == {*probe.ids, *other.ids}
    feedback.ingest_feedback(engine, FeedbackPolicy())
    predictions.delete_before(engine, NOON + timedelta(minutes=1))
    assert {one.id for one in audit.answers(engine, "1", *EVER)} == {*probe.ids, *other.ids}


def test_labels_that_stopped_long_ago_are_not_forgotten(engine: Engine) -> None:
    batch = answers(1)
    predictions.append(engine, [batch], audit_sample_rate=1.0)
    predictions.label(engine, batch.ids[0], 3, AUDITOR)
    feedback.ingest_feedback(engine, FeedbackPolicy())
    given = audit.last_label(engine)
    predictions.delete_before(engine, EVER[1])
    known = audit.last_label(engine)
    assert given is not None and known is not None and given <= known <= given + timedelta(minutes=1)
