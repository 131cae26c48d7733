"""The images that a recipe makes beside those of the data set."""

import numpy as np
import pytest
from pydantic import ValidationError

from digits.data.datasets import Dataset
from digits.images import NO_DIGIT, Split
from models import evaluation, synthetic, training
from models.architectures import Convolutional
from models.synthetic import Synthetic
from models.training import Recipe


def test_the_digits_come_first_and_the_others_in_the_shares_of_the_recipe(bundled: Dataset) -> None:
    digits = Split(bundled.train.images[:200], bundled.train.labels[:200])
    shares = Synthetic(styled=0.1, coarse=0.2, cut=0.3, negatives=0.4)
    made, random = synthetic.made(digits, shares, seed=0), np.random.default_rng(0)
    images, labels = made.of_epoch(0, random)
    np.testing.assert_array_equal(images[:200], digits.images)
    np.testing.assert_array_equal(labels[:200], digits.labels)
    assert len(made) == len(images) == len(labels) == 400 and np.flatnonzero(labels == NO_DIGIT).tolist() == list(
        range(320, 400)
    )
    np.testing.assert_array_equal(images, synthetic.made(digits, shares, seed=0).of_epoch(0, random)[0])
    assert (images[200:] != synthetic.made(digits, shares, seed=1).of_epoch(0, random)[0][200:]).any()
    # In the last epoch, digits of the data set are in the place of the hard ones.
    images, labels = made.of_epoch(1, random)
    known = {(image.tobytes(), int(label)) for image, label in zip(digits.images, digits.labels, strict=True)}
    assert {(image.tobytes(), int(label)) for image, label in zip(images[:320], labels[:320], strict=True)} == known


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="negatives"):
        Synthetic(negatives=0)


def test_a_network_that_has_seen_what_is_no_digit_scores_it_lower(bundled: Dataset) -> None:
    recipe = Recipe(
        name="small",
        architecture=Convolutional(filters=(8, 16), kernels=(5, 3), strides=(2, 2), dense=32, batch_norm=True),
        epochs=8,
        synthetic=Synthetic(),
    )
    model = training.fit(recipe, bundled).model
    answers = model.predict_on_batch(bundled.test.images)
    noise = np.random.default_rng(0).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    assert evaluation.accuracy(answers["probabilities"], bundled.test.labels).value > 0.8
    assert np.median(model.predict_on_batch(noise)["digit_score"]) < np.quantile(answers["digit_score"], 0.1)
