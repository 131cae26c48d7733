"""Prediction sets hold the true digit as often as they say, on held-out real digits, and never say more than they know."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from digits.data import datasets, sources
from digits.images import Images
from digits.settings import load_settings
from models import conformal
from models.conformal import ConformalPredictor
from models.recipes import COMPACT
from models.training import Recipe


def dotted(n: int) -> Images:
    """(n, 28, 28) that are not blank."""
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 10, 10] = 255
    return images


def answers(rows: list[list[float]]) -> NDArray[np.float32]:
    """(n, 10) from the probabilities of the first digits."""
    return np.array([row + [0.0] * (10 - len(row)) for row in rows], np.float32)


def synthetic(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Answers of a model, and the true digits: as many of each, of which fives and eights are hard."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n, 10))
    labels = random.permutation(np.arange(n) % 10)
    logits[np.arange(n), labels] += np.where(np.isin(labels, (5, 8)), 2, 4)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), labels.astype(np.uint8)


def covered(
    known: ConformalPredictor, probabilities: NDArray[np.float32], labels: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """For each digit, the share of its images with the digit in the set, (10,)."""
    sets, _ = known.predict(probabilities, dotted(len(labels)))
    return np.array([sets[labels == digit, digit].mean() for digit in range(10)])


@pytest.mark.parametrize(("images", "coverage"), [(4000, 0.995), (2500, 0.99), (600, 0.95), (300, 0.9)])
def test_the_stated_coverage_holds_for_each_digit_on_average_over_calibrations(images: int, coverage: float) -> None:
    probabilities, labels = synthetic(20_000, seed=0)
    found = []
    for seed in range(100):
        known = conformal.calibrate(*synthetic(images, seed=seed + 1))
        assert (known.coverage, known.images) == (coverage, images)
        found.append(covered(known, probabilities, labels))
    means = np.mean(found, axis=0)
    # 100 calibrations, and the 2,000 test images of each digit, which are the same every time
    error = np.sqrt(np.var(found, axis=0) / 100 + coverage * (1 - coverage) / 2000)
    assert (means > coverage - 3 * error).all()  # what is promised
    assert (means < coverage + 10 / images + 3 * error).all()  # and not by sets that are needlessly large


def test_one_threshold_for_all_digits_would_break_the_promise_for_the_hard_ones() -> None:
    probabilities, labels = synthetic(20_000, seed=0)
    known = conformal.calibrate(*synthetic(4000, seed=1))
    scores, digits = synthetic(4000, seed=1)
    ratio = float(np.sort(scores[np.arange(4000), digits] / scores.max(1))[int(4001 * 0.005) - 1])
    one_for_all = covered(replace(known, ratios=(ratio,) * 10), probabilities, labels)
    assert one_for_all[[5, 8]].max() < 0.985 < covered(known, probabilities, labels).min()
    assert known.ratios[5] < ratio < known.ratios[0]


def test_the_thresholds_are_the_quantiles_of_each_digit() -> None:
    """The order statistic of the definition (Vovk 2012): the floor((n + 1) (1 - coverage))-th smallest of n scores."""
    probabilities, labels = synthetic(1000, seed=7)
    labels[labels == 3] = 2  # 2 has twice as many images
    labels[np.flatnonzero(labels == 4)[:40]] = 3
    known = conformal.calibrate(probabilities, labels)
    assert known.coverage == 0.95  # 40 images of 3
    for digit in range(10):
        scores = sorted(row[digit] / max(row) for row in probabilities[labels == digit])
        assert known.ratios[digit] == scores[math.floor((len(scores) + 1) * 0.05 + 1e-9) - 1]


def test_too_few_images_promise_nothing_that_they_cannot_hold() -> None:
    probabilities, labels = synthetic(600, seed=0)
    few = np.flatnonzero(labels != 9)
    known = conformal.calibrate(probabilities[few], labels[few])  # no image of 9
    assert known == conformal.UNCALIBRATED == conformal.calibrate(*synthetic(150, seed=0))
    sets, uncertain = known.predict(answers([[0.99, 0.01]]), dotted(1))
    assert sets.all() and not uncertain.any()


def test_another_number_of_thresholds_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the thresholds of ten digits, got 9"):
        ConformalPredictor(0.99, (0.1,) * 9, 0.9, 1000)


def test_the_sets_do_not_depend_on_the_temperature() -> None:
    probabilities, labels = synthetic(3000, seed=3)
    others, _ = synthetic(3000, seed=4)
    for temperature in (0.5, 3.0):
        warmed = [p.astype(float) ** (1 / temperature) for p in (probabilities, others)]
        calibrating, asking = ((p / p.sum(1, keepdims=True)).astype(np.float32) for p in warmed)
        sets, _ = conformal.calibrate(calibrating, labels).predict(asking, dotted(3000))
        expected, _ = conformal.calibrate(probabilities, labels).predict(others, dotted(3000))
        assert (sets == expected).mean() > 0.9999  # float32 rounds a ratio at the edge


def test_a_set_holds_the_answer_and_what_is_not_much_less_probable() -> None:
    known = ConformalPredictor(0.99, (0.1, 0.1, 0.05, *(0.1,) * 7), 0.9, 1000)
    sets, _ = known.predict(answers([[0.5, 0.46, 0.04], [0.999, 0.001], [0.9, 0.04, 0.06]]), dotted(3))
    assert [np.flatnonzero(row).tolist() for row in sets] == [[0, 1, 2], [0], [0, 2]]


def test_unsure_is_below_the_limit_of_confidence_or_blank() -> None:
    known = ConformalPredictor(0.99, (0.1,) * 10, 0.9, 1000)
    images = dotted(3)
    images[2] = 0
    sets, uncertain = known.predict(answers([[0.89, 0.11], [0.91, 0.09], [1.0]]), images)
    assert uncertain.tolist() == [True, False, True]
    assert sets.sum(1).tolist() == [2, 1, 10]


def test_blank_is_an_image_without_contrast_whatever_its_brightness() -> None:
    images = np.zeros((6, 28, 28), np.uint8)
    images[1] = 255
    images[2] = 120
    images[2, 10, 10] = 129
    images[3, 10, 10] = 10
    images[4] = 250
    images[4, 3, 3] = 255
    images[5] = 200
    images[5, 0, 0] = 209
    images[5, 27, 27] = 199  # the first pixel is close to all, and those are not close to each other
    assert conformal.blank(images).tolist() == [True, True, True, False, True, False]
    known, sure = ConformalPredictor(0.99, (0.1,) * 10, 0.9, 1000), answers([[1.0]])
    alone = [known.predict(sure, images[[index]])[1].item() for index in range(len(images))]
    assert alone == [True, True, True, False, True, False]


@pytest.mark.parametrize(
    "source",
    [
        "bundled",
        pytest.param("mnist", marks=pytest.mark.skipif("DIGITS_MNIST" not in os.environ, reason="DIGITS_MNIST is not set")),
    ],
)  # fmt: skip
def test_coverage_holds_on_held_out_digits_of_a_trained_and_calibrated_model(
    source: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from models import training

    recipe: Recipe = COMPACT.model_copy(update={"epochs": 3})
    assert recipe.validation_fraction is not None
    dataset = sources.read(source, mnist=load_settings().mnist, cache=tmp_path_factory.mktemp("cache"))
    dataset = datasets.resplit(dataset, recipe.validation_fraction, recipe.seed)
    model = training.fit(recipe, dataset).model
    known = conformal.calibrate(training.predict_proba(model, dataset.validation.images), dataset.validation.labels)
    probabilities = training.predict_proba(model, dataset.test.images)
    shortfall = 1 - known.coverage
    # two sources of chance: which test images, and which validation images (a share of 1 / k of the shortfall, squared)
    n = np.bincount(dataset.test.labels)
    k = np.floor((np.bincount(dataset.validation.labels) + 1) * shortfall + 1e-9)
    error = np.sqrt(shortfall * known.coverage / n + shortfall**2 / k)
    found = covered(known, probabilities, dataset.test.labels)
    # k validation images outside are a Poisson number, which falls more rarely than it rises: a wide margin below
    assert (found > known.coverage - 4.5 * error).all(), (found, known)
    assert found.mean() == pytest.approx(known.coverage, abs=3.5 * np.sqrt((error**2).mean() / 10))
    sets, guesses = known.predict(probabilities, dataset.test.images)
    assert 1 <= sets.sum(1).mean() < 2
    right = probabilities.argmax(1) == dataset.test.labels
    assert right[~guesses].mean() > right.mean() > right[guesses].mean()
    assert (~right[guesses]).sum() > 0.4 * (~right).sum()  # the guesses hold much of what is wrong
