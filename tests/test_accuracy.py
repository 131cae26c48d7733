from dataclasses import replace

import numpy as np
import pytest
from monitored import held_out, reference, window

from digits.data import perturbations
from monitoring import accuracy


def test_labelled_traffic_like_the_reference_is_as_expected() -> None:
    images, labels = held_out()
    found = accuracy.assess(reference(), window(images, labels))
    assert found.verdict == "as expected"
    assert found.labelled is not None and found.labelled.count == len(images)
    right = window(images).digits == labels
    assert found.labelled.value == pytest.approx(right.mean())
    for digit, part in found.per_digit.items():
        assert part.count == (labels == digit).sum() and part.right == right[labels == digit].sum()
    assert f"{found.labelled.value:.2%}" in found.message


def test_traffic_with_more_errors_is_worse() -> None:
    images, labels = held_out()
    found = accuracy.assess(reference(), window(perturbations.shift(images, 3), labels))
    assert found.verdict == "worse" and found.message.startswith("Accuracy is worse than expected")
    assert found.labelled is not None and found.labelled.high < found.expected.low


def test_only_labelled_predictions_count() -> None:
    images, labels = held_out()
    some = np.where(np.arange(len(labels)) % 3 == 0, labels.astype(int), -1)
    found = accuracy.assess(reference(), window(images, some))
    assert found.labelled is not None and found.labelled.count == (some >= 0).sum()


@pytest.mark.parametrize("labelled", [0, 49])
def test_with_few_labels_there_is_no_verdict(labelled: int) -> None:
    images, labels = held_out()
    some = np.where(np.arange(len(labels)) < labelled, (labels.astype(int) + 1) % 10, -1)  # every label says: wrong
    found = accuracy.assess(reference(), window(images, some))
    assert found.verdict == "not enough labels" and f"{labelled} of at least 50" in found.message


def test_a_difference_within_chance_is_as_expected() -> None:
    """The reference's own uncertainty counts: 90 % of 60 against 93 % of the reference is no evidence."""
    images, labels = held_out()
    traffic = window(images[:60], labels[:60])
    expected = accuracy.assess(reference(), traffic).expected.value
    wrong = round(60 * (1 - expected + 0.03))
    told = np.where(np.arange(60) < wrong, (traffic.digits + 1) % 10, traffic.digits).astype(np.int8)
    assert accuracy.assess(reference(), replace(traffic, labels=told)).verdict == "as expected"


def test_an_empty_window() -> None:
    images, _ = held_out()
    found = accuracy.assess(reference(), window(images[:0]))
    assert (found.verdict, found.labelled) == ("not enough labels", None)
    assert found.estimate is None


def test_without_labels_accuracy_is_estimated_from_calibrated_confidence() -> None:
    images, labels = held_out()
    found = accuracy.assess(reference(), window(images))
    true = (window(images).digits == labels).mean()
    assert found.estimate is not None and found.estimate == pytest.approx(true, abs=0.03)
    confidence = window(images).probabilities.max(axis=1).mean()
    assert abs(found.estimate - true) < abs(confidence - true)  # this version is not sure enough of itself


def test_with_labels_the_error_of_the_estimate_is_known() -> None:
    images, labels = held_out()
    shifted = window(perturbations.shift(images, 3), labels)
    found = accuracy.assess(reference(), shifted)
    assert found.estimate is not None and found.labelled is not None and found.estimate_error is not None
    assert found.estimate_error == pytest.approx(found.estimate - found.labelled.value)
    assert found.estimate_error > 0.05


def test_the_audit_sample_decides_though_complaints_say_otherwise() -> None:
    """Complaints are about wrong answers; the sample drawn at random shows that accuracy is as expected."""
    images, labels = held_out()
    right = window(images).digits == labels
    drawn = np.arange(len(labels)) % 4 == 0
    known = np.where(drawn | ~right, labels.astype(int), -1)
    found = accuracy.assess(reference(), window(images, known, audited=drawn))
    assert found.labelled is not None and found.audited is not None
    assert found.audited.count == drawn.sum() and found.audited.right == right[drawn].sum()
    assert found.labelled.value < found.audited.value
    assert found.verdict == "as expected" and "audited" in found.message


def test_complaints_alone_decide_nothing() -> None:
    images, labels = held_out()
    audited = np.zeros(len(labels), np.bool_)
    found = accuracy.assess(reference(), window(perturbations.shift(images, 3), labels, audited=audited))
    assert found.labelled is not None and found.labelled.high < found.expected.low
    assert found.audited is None and found.verdict == "not enough labels" and "0 of at least 50" in found.message


def test_labels_outside_the_sample_count() -> None:
    """Of many answers a report looks at some, and at all that were labelled."""
    images, labels = held_out()
    found = accuracy.assess(reference(), window(images[:100]), window(images[100:], labels[100:]))
    assert found.labelled is not None and found.labelled.count == len(labels) - 100
    assert found.verdict == "as expected" and found.estimate_error is not None


def test_the_message_says_how_wrong_the_estimate_was() -> None:
    images, labels = held_out()
    found = accuracy.assess(reference(), window(perturbations.shift(images, 3), labels))
    assert found.estimate is not None and found.estimate_error is not None and found.labelled is not None
    assert found.estimate_error == pytest.approx(found.estimate - found.labelled.value)
    assert f"{found.estimate:.2%}" in found.message
    assert f"{100 * found.estimate_error:.1f} points too high" in found.message
