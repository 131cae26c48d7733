"""The detector's false-alarm rate and its detection rates on digits that are not in the reference."""

from functools import cache

from monitored import answer, held_out, reference

from digits.data.perturbations import PERTURBATIONS
from monitoring import detection_power
from monitoring.detection_power import INJECTED, DetectionRate


@cache
def measured(count: int) -> dict[tuple[str, str], DetectionRate]:
    images, labels = held_out()
    rates = detection_power.measure(reference(), images, labels, answer, count, windows=20)
    return {(rate.perturbation, rate.description): rate for rate in rates}


def test_the_false_alarm_rate_is_at_most_one_percent() -> None:
    clean = measured(100)["none", "false alarms"]
    assert clean.windows == 100 and clean.detected <= 1


def test_the_strongest_amount_of_every_injected_perturbation_is_detected() -> None:
    strongest = {name: amounts[-1] for name, amounts in INJECTED.items()} | {"invert": 1.0}
    rates = {name: measured(100)[name, PERTURBATIONS[name].describe(amount)].rate for name, amount in strongest.items()}
    assert {name: rate for name, rate in rates.items() if rate < 0.95} == {}


def test_every_perturbation_is_injected() -> None:
    assert {name for name, _ in measured(100)} == {"none", "label_shift", *PERTURBATIONS}


def test_a_doubled_digit_is_detected_in_a_larger_window() -> None:
    """The reference sets the limit: 4,000 images of MNIST's test digits, or 718 of the bundled ones."""
    at_least = 0.95 if len(reference().images) >= 4000 else 0.75
    assert measured(2000)["label_shift", "one digit 2 times as often"].rate >= at_least


def test_a_stronger_label_shift_is_detected_no_less_often() -> None:
    rates = [rate.rate for (name, _), rate in measured(2000).items() if name == "label_shift"]
    assert rates == sorted(rates) and rates[0] < 1
