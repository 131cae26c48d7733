"""The gate promotes what is better, holds what is worse, and says when it cannot know."""

import numpy as np
import pytest

from digits.images import Labels
from models.gate import Answers, Policy, judge, judge_first

LABELS = (np.arange(10_000) % 10).astype(np.uint8)


def answers(wrong: int, start: int = 0, corruption_accuracy: float = 0.8) -> Answers:
    """Right but for `wrong` images from `start` on, spread evenly over the digits."""
    digits: Labels = LABELS.copy()
    digits[start : start + wrong] = (digits[start : start + wrong] + 1) % 10
    return Answers(digits, corruption_accuracy)


def test_a_first_version_needs_the_floor() -> None:
    assert judge_first(0.95, floor=0.9).decision == "promote"
    below = judge_first(0.85, floor=0.9)
    assert below.decision == "hold"
    assert "0.8500" in below.sentence and "0.9000" in below.sentence


def test_a_real_improvement_is_promoted_with_its_counts() -> None:
    verdict = judge(answers(150, start=100), answers(200), LABELS, Policy())
    assert verdict.decision == "promote"
    assert verdict.evidence["only_candidate_right"] == 100
    assert verdict.evidence["only_champion_right"] == 50
    assert verdict.evidence["p_value"] == pytest.approx(2.6e-5, rel=0.1)  # P(X >= 100), X ~ binomial(150, 1/2)


def test_the_same_answers_are_no_evidence() -> None:
    verdict = judge(answers(200), answers(200), LABELS, Policy())
    assert verdict.sentence == "not enough evidence: the candidate answers every test image as the champion does"


def test_a_small_gain_within_the_noise_is_no_evidence() -> None:
    verdict = judge(answers(195, start=190), answers(200), LABELS, Policy())
    assert verdict.decision == "not enough evidence"
    assert verdict.evidence["accuracy"] > verdict.evidence["champion_accuracy"]


def test_a_significant_but_tiny_gain_is_held() -> None:
    verdict = judge(answers(180), answers(190), LABELS, Policy(minimum_gain=0.002))
    assert verdict.evidence["p_value"] < 0.05
    assert verdict.decision == "hold"


def test_a_worse_candidate_is_held() -> None:
    verdict = judge(answers(300), answers(200), LABELS, Policy())
    assert verdict.decision == "hold"
    assert "falls by 1.00 points" in verdict.sentence


def test_harm_to_one_digit_is_held_whatever_the_total() -> None:
    candidate = LABELS.copy()
    candidate[np.flatnonzero(LABELS == 7)[:60]] = 1
    champion = LABELS.copy()
    champion[np.flatnonzero(LABELS != 7)[:300]] += 1
    champion %= 10
    verdict = judge(Answers(candidate, 0.8), Answers(champion, 0.8), LABELS, Policy())
    assert verdict.decision == "hold"
    assert "recall of 7 falls from 1.000 to 0.940" in verdict.sentence


def test_one_lost_image_of_a_rare_digit_is_not_harm() -> None:
    few = LABELS[:270]
    champion, candidate = few.copy(), few.copy()
    champion[:20] = (champion[:20] + 1) % 10
    candidate[np.flatnonzero(few == 7)[-1]] = 1  # 1 of 27, 3.7 %
    verdict = judge(Answers(candidate, 0.8), Answers(champion, 0.8), few, Policy())
    assert verdict.decision == "promote"


def test_worse_answers_on_corrupted_images_are_held() -> None:
    verdict = judge(answers(100, corruption_accuracy=0.7), answers(200), LABELS, Policy())
    assert verdict.decision == "hold"
    assert "corrupted" in verdict.sentence


def test_every_reason_is_collected() -> None:
    verdict = judge(answers(300, corruption_accuracy=0.7), answers(200), LABELS, Policy())
    assert len(verdict.reasons) == 2
