import numpy as np
import pytest
from monitored import answer, held_out, reference, window

from digits.data import perturbations
from digits.images import Images
from digits.reference import Reference
from monitoring import drift, samples
from monitoring.drift import Drift, Tables
from monitoring.samples import Sample


def traffic(images: Images) -> Sample:
    return samples.distinct(samples.of_window(window(images)))[0]


def detect(images: Images, expected: Reference | None = None) -> Drift:
    return drift.detect(samples.of_reference(expected or reference()), traffic(images))


def tables() -> Tables:
    return drift.measure(samples.of_reference(reference()), traffic(held_out()[0]))


def test_plain_traffic_is_no_drift() -> None:
    found = detect(held_out()[0][:300])
    assert found.verdict == "no drift"
    assert (found.severity, found.explanations, found.drifted_share) == ("none", (), 0.0)
    assert {column.name for column in found.columns} >= {"ink", "slant", "block_1_1", "axis_1", "confidence", "digit"}
    assert "No drift" in found.message


def without_digits(share: float, images: Images, seed: int = 0) -> Sample:
    """These images, of which a random share is taken for no digits."""
    random = np.random.default_rng(seed)
    return samples.of_images(images, answer(images), no_digit=random.random(len(images)) < share)


def test_a_rise_of_the_share_of_images_without_a_digit_is_drift_of_that_column() -> None:
    expected = without_digits(0.01, reference().images)
    found = drift.detect(expected, without_digits(0.2, held_out()[0][:300], seed=1))
    (column,) = [column for column in found.columns if column.drifted]
    assert (column.name, column.unit) == ("no_digit", "share of the images")
    assert column.reference == pytest.approx(0.01, abs=0.01) and column.current == pytest.approx(0.2, abs=0.06)
    assert column.score == pytest.approx(column.current - column.reference) and column.threshold >= 0.05
    assert "no_digit" in found.message and found.explanations[0].perturbation == "unknown"


def test_an_unchanged_share_is_no_drift_and_without_a_score_there_is_no_such_column() -> None:
    images = held_out()[0][:300]
    expected = without_digits(0.02, reference().images)
    for share in (0.0, 0.02):
        found = drift.detect(expected, without_digits(share, images, seed=1))
        assert found.verdict == "no drift" and "no_digit" in {column.name for column in found.columns}
    names = {column.name for column in drift.detect(expected, traffic(images)).columns}
    assert "confidence" in names and "no_digit" not in names


@pytest.mark.parametrize("count", [0, 1, 99])
def test_too_few_predictions_give_no_verdict(count: int) -> None:
    found = detect(perturbations.invert(held_out()[0][:count]))
    assert found.verdict == "not enough data"
    assert found.columns == () and found.explanations == ()
    assert f"{count} different images" in found.message


def test_a_small_reference_gives_no_verdict() -> None:
    whole = reference()
    small = Reference(whole.images[:60], whole.labels[:60], whole.probabilities[:60])
    found = detect(held_out()[0][:300], small)
    assert found.verdict == "not enough data" and "60 of the reference" in found.message


def test_the_same_window_gives_the_same_verdict() -> None:
    shifted = perturbations.shift(held_out()[0][:200], 1)
    assert detect(shifted) == detect(shifted)


def test_an_image_that_is_sent_again_and_again_counts_once() -> None:
    """An uptime probe makes up 84 % of the answers; the others are as usual."""
    images = held_out()[0]
    probed = window(np.concatenate([np.repeat(images[:1], 1575, axis=0), images[:300]]))
    found, repeats = samples.distinct(samples.of_window(probed))
    assert (len(found), repeats.answers, repeats.most) == (300, 1575, 1576)
    assert repeats.share == pytest.approx(0.84, abs=0.001)
    assert drift.detect(samples.of_reference(reference()), found).verdict == "no drift"
    as_before = drift.detect(samples.of_reference(reference()), samples.of_window(probed))
    assert (as_before.verdict, as_before.severity) == ("drift", "strong")


def test_fewer_predictions_need_a_larger_distance() -> None:
    expected, _ = tables()
    few, many = (drift.thresholds(expected, count) for count in (100, 2000))
    assert all(few[name] > many[name] for name in expected if few[name] > drift.SMALLEST_DISTANCE)
    assert few["ink"] > 0.1


@pytest.mark.parametrize(("alpha", "least", "most"), [(0.1, 8, 48), (0.001, 0, 3)])
def test_thresholds_keep_the_false_alarms_of_all_columns_together(
    alpha: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows drawn from the reference itself: of 300, alpha = 0.1 allows 30; 48 is three standard deviations more."""
    for name in ("SMALLEST_DISTANCE", "SMALLEST_SHARE"):
        monkeypatch.setattr(drift, name, 1e-6)
    expected, _ = tables()
    limits = drift.thresholds(expected, 150, alpha=alpha)
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
    assert least <= alarms <= most


def test_a_change_too_small_to_matter_is_not_drift() -> None:
    expected, _ = tables()
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
    found = detect(perturbations.dim(held_out()[0][:200], 0.6))
    ratios = [column.score / column.threshold for column in found.columns]
    assert ratios == sorted(ratios, reverse=True)
    drifted = [column for column in found.columns if column.drifted]
    assert drifted and all(column.score > column.threshold for column in drifted)
    assert found.drifted_share == len(drifted) / len(found.columns)
    assert found.verdict == "drift"


def test_a_verdict_survives_json() -> None:
    found = detect(perturbations.invert(held_out()[0][:150]))
    assert drift.Drift.model_validate_json(found.model_dump_json()) == found


def test_images_of_one_writer_are_not_independent() -> None:
    """Twenty images in each of 25 hands: resampled as images they drift, resampled as clients they do not."""
    random = np.random.default_rng(3)
    images = held_out()[0][:500]
    hands = np.concatenate([perturbations.shift(images[n : n + 20], random.normal(0, 1)) for n in range(0, 500, 20)])
    sample = samples.of_window(window(hands))
    known = np.repeat([f"writer {n}" for n in range(25)], 20)
    alone = drift.detect(samples.of_reference(reference()), sample)
    together = drift.detect(
        samples.of_reference(reference()), Sample(sample.images, sample.probabilities, known, sample.is_picture)
    )
    limits = [{column.name: column.threshold for column in found.columns} for found in (alone, together)]
    assert limits[1]["centre_x"] > 2 * limits[0]["centre_x"]
    assert (alone.clients, together.clients) == (None, 25)


def test_few_or_single_clients_leave_images_independent() -> None:
    assert drift.effective_clients(np.repeat(["a", "b"], 200)) is None
    assert drift.effective_clients([""] * 300) is None
    assert drift.effective_clients([str(n) for n in range(300)]) is None
    assert drift.effective_clients(np.repeat([f"{n}" for n in range(30)], 10)) == pytest.approx(30)
    assert drift.effective_clients([*["gateway"] * 700, *["tester", "other"] * 30, *[""] * 40]) is None
