"""The gate promotes what is better, holds what is worse, and says when it cannot know."""

import numpy as np
import pytest

from digits.images import Labels
from models.gate import EvaluationSample, GatePolicy, GateVerdict, ModelFacts, judge, judge_first

LABELS = (np.arange(10_000) % 10).astype(np.uint8)
FIT = ModelFacts(corruption_accuracy=0.8, size_bytes=400_000, milliseconds=0.05)


def answers(wrong: int, start: int = 0) -> Labels:
    """Right but for `wrong` images from `start` on, spread evenly over the digits."""
    digits: Labels = LABELS.copy()
    digits[start : start + wrong] = (digits[start : start + wrong] + 1) % 10
    return digits


def verdict(
    candidate: Labels,
    champion: Labels,
    *more: EvaluationSample,
    facts: ModelFacts = FIT,
    champion_facts: ModelFacts = FIT,
    policy: GatePolicy | None = None,
) -> GateVerdict:
    labels = LABELS[: len(candidate)]
    samples = [EvaluationSample("test images", labels, candidate, champion), *more]
    return judge(samples, facts, champion_facts, policy or GatePolicy(), significance=0.01)


def test_a_first_version_needs_the_floor() -> None:
    assert judge_first(0.95, 0.9, FIT, GatePolicy()).decision == "promote"
    below = judge_first(0.85, 0.9, FIT, GatePolicy())
    assert below.decision == "hold"
    assert "0.8500" in below.sentence and "0.9000" in below.sentence


def test_a_real_improvement_is_promoted_with_its_counts() -> None:
    found = verdict(answers(150, start=100), answers(200))
    assert found.decision == "promote"
    assert found.evidence["test images: only candidate right"] == 100
    assert found.evidence["test images: only champion right"] == 50
    # P(X >= 100) for X ~ binomial(150, 1/2)
    assert found.evidence["test images: p-value"] == pytest.approx(2.7e-5, rel=0.05)


def test_the_same_answers_are_no_evidence() -> None:
    found = verdict(answers(200), answers(200))
    assert found.sentence == (
        "not enough evidence: test images: only the candidate is right on 0 of 10000, only the champion on 0, p = 1"
    )


def test_a_small_gain_within_the_noise_is_no_evidence() -> None:
    found = verdict(answers(195, start=190), answers(200))
    assert found.decision == "not enough evidence"
    assert found.evidence["test images: accuracy"] > found.evidence["test images: champion accuracy"]


def test_a_small_loss_within_the_noise_is_no_evidence_either() -> None:
    assert verdict(answers(210, start=190), answers(200)).decision == "not enough evidence"


def test_a_significant_but_tiny_gain_is_held() -> None:
    found = verdict(answers(180), answers(190))
    assert found.evidence["test images: p-value"] < 0.01
    assert found.decision == "hold"
    assert "5.3% of the champion's errors gone, 12.5% are required" in found.sentence


def test_a_worse_candidate_is_held() -> None:
    found = verdict(answers(300), answers(200))
    assert found.decision == "hold"
    assert "accuracy on test images falls from 0.980 to 0.970" in found.sentence


def test_harm_to_one_digit_is_held_whatever_the_total() -> None:
    candidate = LABELS.copy()
    candidate[np.flatnonzero(LABELS == 7)[:60]] = 1
    champion = LABELS.copy()
    champion[np.flatnonzero(LABELS != 7)[:300]] += 1
    champion %= 10
    found = verdict(candidate, champion)
    assert found.decision == "hold"
    assert "recall of 7 falls from 1.000 to 0.940" in found.sentence


def test_one_lost_image_of_a_rare_digit_is_not_harm() -> None:
    few = LABELS[:270]
    champion, candidate = few.copy(), few.copy()
    champion[:20] = (champion[:20] + 1) % 10
    candidate[np.flatnonzero(few == 7)[-1]] = 1  # 1 of 27, 3.7 %
    assert verdict(candidate, champion).decision == "promote"


def test_worse_answers_on_corrupted_images_are_held() -> None:
    found = verdict(answers(100), answers(200), facts=ModelFacts(0.7, 400_000, 0.05))
    assert found.decision == "hold"
    assert "accuracy on corrupted images falls from 0.800 to 0.700" in found.sentence


def test_better_on_new_traffic_is_enough_when_nothing_else_suffers() -> None:
    labels = LABELS[:200]
    worse_before = labels.copy()
    worse_before[:60] = (worse_before[:60] + 1) % 10
    traffic = EvaluationSample("new traffic", labels, labels, worse_before)
    found = verdict(answers(205), answers(200), traffic)
    assert found.decision == "promote"
    assert found.reasons == [
        "new traffic: only the candidate is right on 60 of 200, only the champion on 0, a gain of 30.00 points, p = 8.7e-19"
    ]
    assert verdict(answers(300), answers(200), traffic).decision == "hold"


@pytest.mark.parametrize("who", ["candidate", "champion"])
def test_images_that_either_trained_on_judge_nothing(who: str) -> None:
    seen = ModelFacts(0.8, 400_000, 0.05, images_trained_on=12)
    found = verdict(
        answers(100),
        answers(200),
        facts=seen if who == "candidate" else FIT,
        champion_facts=seen if who == "champion" else FIT,
    )
    assert found.decision == "hold"
    assert found.reasons == [f"the {who} trained on 12 of the evaluation images"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (ModelFacts(0.8, 60_000_000, 0.05), "the candidate's file has 60,000,000 bytes, allowed are 50,000,000"),
        (ModelFacts(0.8, 400_000, 25.0), "the candidate takes 25.0 ms for one image, allowed are 20"),
    ],
)
def test_a_model_too_large_or_too_slow_is_held_even_as_the_first(facts: ModelFacts, message: str) -> None:
    assert verdict(answers(100), answers(200), facts=facts).reasons == [message]
    assert judge_first(0.99, 0.9, facts, GatePolicy()).reasons == [message]


def test_every_reason_is_collected() -> None:
    found = verdict(answers(300), answers(200), facts=ModelFacts(0.7, 60_000_000, 25.0))
    assert len(found.reasons) == 4


def test_a_small_loss_of_one_digit_does_not_stop_a_large_gain_elsewhere_but_a_large_one_does() -> None:
    """Drifted traffic recovered is worth three points of one digit's recall, not six."""
    new = (np.arange(400) % 10).astype(np.uint8)
    blind = np.where(np.arange(400) < 200, (new + 1) % 10, new).astype(np.uint8)
    traffic = EvaluationSample("new traffic", new, candidate=new, champion=blind)
    for lost, decision in ((30, "promote"), (60, "hold")):
        fours = np.flatnonzero(LABELS == 4)[:lost]
        others = np.flatnonzero(LABELS == 7)[:lost]
        candidate, champion = LABELS.copy(), LABELS.copy()
        candidate[fours], champion[others] = 9, 1
        assert verdict(candidate, champion, traffic).decision == decision


@pytest.mark.parametrize(("wrong", "decision"), [(50, "promote"), (62, "hold")])
def test_what_is_worth_a_promotion_depends_on_how_few_errors_are_left(wrong: int, decision: str) -> None:
    """Of 70 errors in 10,000, twenty less are much; of 70, eight less are not."""
    assert verdict(answers(wrong), answers(70)).decision == decision
