"""Who is told of what, and what the power of the detector is measured on."""

from pathlib import Path

import numpy as np
from monitored import held_out, reference, window

from digits.data import datasets, perturbations
from digits.images import Split
from flows.monitor import alerts_of
from monitoring import reports
from ops.detection_power import hold_out

REPORT = Path("var/reports/a/report.html")


def test_drift_and_lost_accuracy_are_twoalerts_of_and_plain_traffic_is_none() -> None:
    images, labels = held_out()
    plain = reports.assess(reference(), window(images[:300], labels[:300]))
    assert alerts_of("7", plain, REPORT) == []
    shifted = reports.assess(reference(), window(perturbations.shift(images[:300], 3), labels[:300]))
    found = alerts_of("7", shifted, REPORT)
    assert [(alert.event, alert.about) for alert in found] == [("drift", "digits v7: shift"), ("accuracy", "digits v7")]
    assert found[0].message == shifted.drift.message and found[1].message == shifted.accuracy.message
    assert found[0].details["report"] == str(REPORT)
    assert found[0].details["recommendations"] == list(shifted.recommendations)


def test_another_amount_of_the_same_cause_is_the_same_alert() -> None:
    images = held_out()[0][:300]
    about = {
        alerts_of("7", reports.assess(reference(), window(perturbations.shift(images, right))), REPORT)[0].about
        for right in (2, 3)
    }
    assert about == {"digits v7: shift"}


def test_power_is_measured_on_digits_that_are_not_in_the_reference() -> None:
    images, labels = held_out()
    test = Split(np.concatenate([reference().images, images]), np.concatenate([reference().labels, labels]))
    kept, others = hold_out(reference(), test)
    assert kept is reference()
    assert len(others) == len({image.tobytes() for image in images})


def test_of_a_small_data_set_half_of_the_reference_is_held_out() -> None:
    kept, others = hold_out(reference(), Split(reference().images, reference().labels))
    assert abs(len(kept) - len(others)) <= 1
    assert not np.isin(datasets.digests(kept.images), datasets.digests(others.images)).any()
