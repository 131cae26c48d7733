import numpy as np
import pytest
from monitored import held_out, reference, window

from digits.data import perturbations
from digits.reference import Reference
from monitoring import drift


def test_plain_traffic_is_no_drift() -> None:
    found = drift.detect(reference(), window(held_out()[0][:300]))
    assert found.verdict == "no drift"
    assert (found.severity, found.explanations, found.drifted_share) == ("none", (), 0.0)
    assert {column.name for column in found.columns} >= {"ink", "slant", "block_1_1", "axis_1", "confidence", "digit"}
    assert "No drift" in found.message


@pytest.mark.parametrize("count", [0, 1, 99])
def test_too_few_predictions_give_no_verdict(count: int) -> None:
    found = drift.detect(reference(), window(perturbations.invert(held_out()[0][:count])))
    assert found.verdict == "not enough data"
    assert found.columns == () and found.explanations == ()
    assert f"{count} predictions" in found.message


def test_a_small_reference_gives_no_verdict() -> None:
    whole = reference()
    small = Reference(whole.images[:60], whole.labels[:60], whole.probabilities[:60])
    found = drift.detect(small, window(held_out()[0][:300]))
    assert found.verdict == "not enough data" and "60 reference images" in found.message


def test_the_same_window_gives_the_same_verdict() -> None:
    traffic = window(perturbations.shift(held_out()[0][:200], 1))
    assert drift.detect(reference(), traffic) == drift.detect(reference(), traffic)


def test_a_window_of_one_blank_image_repeated_is_drift() -> None:
    found = drift.detect(reference(), window(np.zeros((150, 28, 28), np.uint8)))
    assert (found.verdict, found.severity) == ("drift", "strong")


def test_fewer_predictions_need_a_larger_distance() -> None:
    expected, _ = drift.measure(reference(), window(held_out()[0]))
    few, many = (drift.thresholds(expected, count) for count in (100, 2000))
    assert all(few[name] > many[name] for name in expected if few[name] > drift.SMALLEST_DISTANCE)
    assert few["ink"] > 0.1


def test_thresholds_keep_the_false_alarms_of_all_columns_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows drawn from the reference itself: of 300, alpha = 0.1 allows 30; 48 is three standard deviations more."""
    for name, value in {"ALPHA": 0.1, "SMALLEST_DISTANCE": 1e-6, "SMALLEST_SHARE": 1e-6}.items():
        monkeypatch.setattr(drift, name, value)
    expected, _ = drift.measure(reference(), window(held_out()[0]))
    limits = drift.thresholds(expected, 150)
    random = np.random.default_rng(5)
    size = len(expected["ink"])
    alarms = 0
    for _ in range(300):
        expected_rows, rows = random.integers(0, size, size), random.integers(0, size, 150)
        columns = drift.compare(
            {name: values[expected_rows] for name, values in expected.items()},
            {name: values[rows] for name, values in expected.items()},
            limits,
        )
        alarms += any(column.drifted for column in columns)
    assert 8 <= alarms <= 48


def test_a_change_too_small_to_matter_is_not_drift() -> None:
    expected, _ = drift.measure(reference(), window(held_out()[0]))
    current = {name: np.repeat(values, 20) for name, values in expected.items()}
    current["ink"] = current["ink"] + 0.02 * expected["ink"].std()
    limits = drift.thresholds(expected, len(current["ink"]))
    assert not any(column.drifted for column in drift.compare(expected, current, limits))


def test_the_digit_column_reports_the_share_that_changed_most() -> None:
    expected = {"digit": np.repeat(np.arange(10.0), 10)}
    current = {"digit": np.concatenate([np.repeat(np.arange(10.0), 5), np.full(10, 7.0)])}
    (column,) = drift.compare(expected, current, {"digit": 0.1})
    assert (column.unit, column.drifted) == ("share of 7s", True)
    assert (column.reference, column.current) == (0.1, 0.25)
    assert column.score == pytest.approx(0.15)


def test_columns_come_most_exceeding_first_and_the_verdict_follows_from_them() -> None:
    found = drift.detect(reference(), window(perturbations.dim(held_out()[0][:200], 0.6)))
    ratios = [column.score / column.threshold for column in found.columns]
    assert ratios == sorted(ratios, reverse=True)
    drifted = [column for column in found.columns if column.drifted]
    assert drifted and all(column.score > column.threshold for column in drifted)
    assert found.drifted_share == len(drifted) / len(found.columns)
    assert found.verdict == "drift"


def test_a_verdict_survives_json() -> None:
    found = drift.detect(reference(), window(perturbations.invert(held_out()[0][:150])))
    assert drift.Drift.model_validate_json(found.model_dump_json()) == found
