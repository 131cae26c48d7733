"""Prediction sets hold the true digit as often as they say, on held-out real digits, and never say more than they know."""

import os

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
    """Answers of a model that is right four times in five, and the true digits."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n, 10))
    labels = random.integers(0, 10, n)
    logits[np.arange(n), labels] += 4
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), labels.astype(np.uint8)


def covered(known: ConformalPredictor, probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    sets, _ = known.predict(probabilities, dotted(len(labels)))
    return float(sets[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize(("images", "coverage"), [(400, 0.995), (250, 0.99), (60, 0.95), (30, 0.9)])
def test_the_stated_coverage_holds_on_average_over_calibrations(images: int, coverage: float) -> None:
    probabilities, labels = synthetic(20_000, seed=0)
    found = []
    for seed in range(100):
        known = conformal.calibrate(*synthetic(images, seed=seed + 1))
        assert (known.coverage, known.images) == (coverage, images)
        found.append(covered(known, probabilities, labels))
    error = np.std(found) / 10
    assert np.mean(found) > coverage - 3 * error  # what is promised
    assert np.mean(found) < coverage + 2 / images + 3 * error  # and not by sets that are needlessly large


def test_too_few_images_promise_nothing_that_they_cannot_hold() -> None:
    known = conformal.calibrate(*synthetic(15, seed=0))
    assert known == conformal.UNCALIBRATED
    sets, uncertain = known.predict(answers([[0.99, 0.01]]), dotted(1))
    assert sets.all() and not uncertain.any()


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
    known = ConformalPredictor(0.99, 0.1, 0.9, 1000)
    sets, _ = known.predict(answers([[0.5, 0.46, 0.04], [0.999, 0.001]]), dotted(2))
    assert [np.flatnonzero(row).tolist() for row in sets] == [[0, 1], [0]]


def test_unsure_is_below_the_limit_of_confidence_or_blank() -> None:
    known = ConformalPredictor(0.99, 0.1, 0.9, 1000)
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
    known, sure = ConformalPredictor(0.99, 0.1, 0.9, 1000), answers([[1.0]])
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
    known = conformal.calibrate(training.forward(model, dataset.validation.images), dataset.validation.labels)
    probabilities = training.forward(model, dataset.test.images)
    n, k = len(dataset.test), (known.images + 1) * (1 - known.coverage)
    shortfall = 1 - known.coverage
    # two sources of chance: which test images, and which validation images (a share of 1 / k of the shortfall, squared)
    error = np.sqrt(shortfall * known.coverage / n + shortfall**2 / k)
    found = covered(known, probabilities, dataset.test.labels)
    assert abs(found - known.coverage) < 3.5 * error, (found, known)
    sets, guesses = known.predict(probabilities, dataset.test.images)
    assert 1 <= sets.sum(1).mean() < 2
    right = probabilities.argmax(1) == dataset.test.labels
    assert right[~guesses].mean() > right.mean() > right[guesses].mean()
    assert (~right[guesses]).sum() > 0.4 * (~right).sum()  # the guesses hold much of what is wrong
