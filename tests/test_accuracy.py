from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from monitored import START, held_out, reference, window

from digits import intervals
from digits.data import perturbations
from digits.images import NO_DIGIT
from digits.storage.audit import AuditedAnswer
from monitoring import accuracy
from monitoring.accuracy import Accuracy, History


def judged(right: np.ndarray, days: np.ndarray, clients: list[str] | None = None, promoted: float = 0.0) -> Accuracy:
    """The verdict on audited answers of these days after the start, in an hour without traffic."""
    answers = [
        AuditedAnswer(f"id{n}", START + timedelta(days=int(day), minutes=n % 600), client, bool(is_right), 0.9)
        for n, (is_right, day, client) in enumerate(zip(right, days, clients or [""] * len(days), strict=True))
    ]
    accuracy_at_promotion = intervals.wilson(round(promoted * 300), 300) if promoted else None
    return accuracy.assess(
        reference(), window(held_out()[0][:0]), history=History(answers, START, accuracy_at_promotion)
    )


def drawn(days: np.ndarray, accuracies: np.ndarray | float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(len(days)) < accuracies


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
    images = held_out()[0]
    told = np.where(np.arange(len(images)) < labelled, window(images).digits.astype(int), -1)  # every label says: right
    found = accuracy.assess(reference(), window(images, told))
    assert found.verdict == "not enough labels" and f"{labelled} of at least 50" in found.message


def test_a_fall_that_few_labels_prove_is_told() -> None:
    found = judged(np.zeros(12), np.repeat([0, 1], 6))
    assert found.verdict == "worse" and found.newest is not None and found.newest.labels == 12


def test_a_fall_after_good_months_is_told_within_days_though_no_day_has_fifty_labels() -> None:
    days = np.repeat(np.arange(67), 10)
    right = drawn(days, np.where(days < 60, 0.98, 0.4))
    assert judged(right[days < 60], days[days < 60]).verdict == "as expected"
    found = judged(right, days)
    assert found.verdict == "worse" and found.newest is not None and found.worse_since is not None
    assert found.newest.labels == 70 and found.newest.since == (START + timedelta(days=60)).date()
    assert abs((found.worse_since - START.date()).days - 60) <= 1
    assert f"worse than expected since about {found.worse_since}" in found.message


def test_a_fall_that_ended_is_not_worse_for_ever() -> None:
    days = np.repeat(np.arange(60), 10)
    right = drawn(days, np.where((days >= 20) & (days < 40), 0.2, 0.99))
    assert judged(right[days < 40], days[days < 40]).verdict == "worse"
    found = judged(right, days)
    assert found.evidence < 2.3 and found.verdict == "as expected"


def test_after_a_fall_that_ended_chance_is_not_worse_but_a_second_fall_is() -> None:
    """Its evidence would turn every unlucky week of the version's later time into an alarm, also after a rollback to it."""
    days = np.repeat(np.arange(200), 10)
    right = drawn(days, np.where((days >= 20) & (days < 40), 0.6, 0.96))
    looks = [judged(right[days < end], days[days < end]).verdict for end in (40, *range(70, 180, 10))]
    assert looks[0] == "worse" and set(looks[1:]) == {"as expected"}
    second = right & (drawn(days, 0.5, seed=1) | (days < 185))
    found = judged(second, days)
    assert found.verdict == "worse" and found.worse_since is not None
    assert abs((found.worse_since - START.date()).days - 185) <= 2


def test_a_lucky_week_does_not_end_a_fall() -> None:
    days = np.repeat(np.arange(40), 10)
    right = drawn(days, np.where(days < 20, 0.98, 0.2)) | (days // 7 == 4)
    assert judged(right[days < 35], days[days < 35]).verdict == "as expected"
    assert judged(right, days).verdict == "worse"


def test_labels_that_came_long_ago_still_count() -> None:
    """Nobody labelled anything for a month: what was known stays known, with its dates."""
    found = judged(np.zeros(30), np.full(30, 40))
    assert found.verdict == "worse" and "to 2026-02-14" in found.message


def test_the_answers_to_one_client_on_a_day_are_one_observation() -> None:
    right, days = np.arange(100) >= 40, np.zeros(100, int)
    assert judged(right, days).verdict == "worse"
    three = judged(right, days, ["ann", "ben", "eva"] * 33 + ["ann"])
    assert three.verdict == "as expected" and three.newest is not None
    assert three.newest.value == pytest.approx(0.6, abs=0.01) and three.newest.high > 0.95
    assert judged(right, days, [f"writer {n}" for n in range(100)]).verdict == "worse"


def test_one_application_sends_for_many_writers() -> None:
    assert judged(np.arange(100) >= 40, np.zeros(100, int), ["shop"] * 100).verdict == "worse"


def test_a_version_that_was_promoted_on_harder_traffic_is_expected_to_reach_that() -> None:
    days = np.repeat(np.arange(30), 20)
    right = drawn(days, 0.7)
    assert judged(right, days).verdict == "worse"
    found = judged(right, days, promoted=0.72)
    assert found.verdict == "as expected"
    assert found.least == pytest.approx(intervals.lower_bound(216, 300, 0.005))


def test_while_images_drift_the_message_has_no_estimate() -> None:
    images, labels = held_out()
    shifted = window(perturbations.shift(images, 3), labels)
    found = accuracy.assess(reference(), shifted, drifted=True)
    assert found.estimate is not None and "estimate" not in found.message
    assert "estimate" in accuracy.assess(reference(), shifted).message


def test_a_difference_within_chance_is_as_expected() -> None:
    """The reference's own uncertainty counts: 90 % of 60 against 93 % of the reference is no evidence."""
    images, labels = held_out()
    traffic = window(images[:60], labels[:60])
    expected = accuracy.assess(reference(), traffic).expected.value
    wrong = round(60 * (1 - expected + 0.03))
    told = np.where(np.arange(60) < wrong, (traffic.digits + 1) % 10, traffic.digits).astype(np.int8)
    assert accuracy.assess(reference(), replace(traffic, labels=told)).verdict == "as expected"


@pytest.mark.parametrize(("threshold", "refused"), [(None, 0), (0.5, 6)])
def test_images_of_no_digit_are_a_figure_of_their_own(threshold: float | None, refused: int) -> None:
    """What is expected of a version is its accuracy on digits: a few per cent of other images must not make it worse."""
    images, labels = held_out()
    told = labels.astype(int)
    told[:12] = NO_DIGIT
    traffic = replace(window(images, told), digit_scores=np.where(np.arange(len(labels)) < 6, 0, 1).astype(np.float32))
    found = accuracy.assess(reference(), traffic, digit_threshold=threshold)
    plain = accuracy.assess(reference(), window(images[12:], labels[12:]))
    assert (found.verdict, found.audited, found.labelled) == (plain.verdict, plain.audited, plain.labelled)
    assert found.newest is not None and found.newest.labels == len(labels) - 12
    assert (found.per_digit[NO_DIGIT].right, found.per_digit[NO_DIGIT].count) == (refused, 12)


def test_an_empty_window() -> None:
    images, _ = held_out()
    found = accuracy.assess(reference(), window(images[:0]))
    assert (found.verdict, found.labelled) == ("not enough labels", None)
    assert found.estimate is None


def test_without_labels_accuracy_is_estimated_from_calibrated_confidence() -> None:
    images, labels = held_out()
    found = accuracy.assess(reference(), window(images))
    assert "no label has confirmed it" in found.message
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
    assert f"Of this window's {found.labelled.count} audited predictions" in found.message


def test_the_message_says_how_wrong_the_estimate_was() -> None:
    images, labels = held_out()
    found = accuracy.assess(reference(), window(perturbations.shift(images, 3), labels))
    assert found.estimate is not None and found.estimate_error is not None and found.labelled is not None
    assert found.estimate_error == pytest.approx(found.estimate - found.labelled.value)
    assert f"{found.estimate:.2%}" in found.message
    assert f"{100 * found.estimate_error:.1f} points too high" in found.message
