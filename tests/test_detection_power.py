"""The floor under the detector: its false alarms and its power on digits that were never in the reference."""

from functools import cache

from monitored import answer, held_out, reference

from monitoring import detection_power, drift

MUST = {"1 px right", "10° clockwise", "to 60%", "1 px", "20 grey levels", "", "one digit 2 times as often"}


@cache
def measured(count: int) -> list[detection_power.Power]:
    images, labels = held_out()
    policy = drift.DriftPolicy(resamples=600)
    return detection_power.measure(reference(), images, labels, answer, count, policy, windows=20, clean_windows=100)


def test_false_alarms_stay_below_five_in_a_hundred() -> None:
    first = measured(100)[0]
    assert (first.change, first.windows) == ("none", 100)
    assert first.caught <= 5


def test_every_injected_change_is_caught() -> None:
    strong = [found for found in measured(100) if found.strength in MUST and found.change not in ("none", "mix")]
    assert {found.change for found in strong} == {*detection_power.INJECTED, "inverted"}
    assert {found.change: found.share for found in strong if found.share < 0.95} == {}


def test_a_doubled_digit_is_caught_in_a_larger_window() -> None:
    """At 2,000 because the small reference sets the limit here; against 5,000 images of MNIST 500 predictions are enough."""
    (found,) = [found for found in measured(2000) if found.strength == "one digit 2 times as often"]
    assert found.share >= 0.95


def test_a_stronger_change_is_caught_no_less_often() -> None:
    shares = [found.share for found in measured(2000) if found.change == "mix"]
    assert shares == sorted(shares) and shares[0] < 1
