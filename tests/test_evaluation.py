"""Metrics agree with the definitions they cite, by independent computation."""

import numpy as np
import pytest

from models import evaluation

LABELS = (np.arange(1000) % 10).astype(np.uint8)


def probabilities(right: int, confidence: float) -> evaluation.Probabilities:
    """The first `right` of 1,000 answers right, all with the same confidence."""
    answered = np.where(np.arange(1000) < right, LABELS, (LABELS + 1) % 10)
    others = (1 - confidence) / 9
    return (np.full((1000, 10), others) + (confidence - others) * np.eye(10)[answered]).astype(np.float32)


def test_log_loss_is_the_mean_negative_log_of_the_true_digit() -> None:
    expected = -(900 * np.log(0.8) + 100 * np.log(0.2 / 9)) / 1000
    assert evaluation.log_loss(probabilities(900, 0.8), LABELS) == pytest.approx(expected, rel=1e-5)
    certain = np.eye(10, dtype=np.float32)[(LABELS + 1) % 10]  # and wrong
    assert 25 < evaluation.log_loss(certain, LABELS) < 40


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    assert evaluation.expected_calibration_error(probabilities(900, 0.7), LABELS) == pytest.approx(0.2, abs=1e-5)
    assert evaluation.expected_calibration_error(probabilities(900, 0.9), LABELS) == pytest.approx(0.0, abs=1e-5)


def test_most_confused_names_the_mistakes() -> None:
    counts = np.diag([100] * 10)
    counts[4, 9], counts[3, 5] = 12, 7
    assert evaluation.most_confused(counts) == [(4, 9, 12), (3, 5, 7)]


def test_an_evaluation_has_few_metrics_and_the_names_of_the_contract() -> None:
    test = type("Split", (), {"images": np.zeros((1000, 28, 28), np.uint8), "labels": LABELS})()
    metrics = evaluation.evaluate(lambda images: probabilities(970, 0.9), test).metrics
    assert len(metrics) < 60
    assert metrics["test_accuracy"] == 0.97
    assert metrics["test_accuracy_low"] < 0.97 < metrics["test_accuracy_high"]
    assert metrics["corruption_accuracy"] == pytest.approx(0.97)
    assert metrics["recall_9"] == pytest.approx(0.97)


def test_corruptions_change_what_they_say() -> None:
    image = np.zeros((4, 28, 28), np.uint8)
    image[:, 10:18, 12:16] = 200
    suite = evaluation.corruptions(image)
    np.testing.assert_array_equal(suite["inverted"], 255 - image)
    np.testing.assert_array_equal(suite["shift_2"][0], np.roll(image[0], 2, axis=1))
    assert suite["thicker"].sum() > image.sum() > suite["thinner"].sum()
    assert suite["contrast"].max() == 100
    assert suite["blur"].sum() == pytest.approx(float(image.sum()), rel=0.02) and suite["blur"].max() < 200
