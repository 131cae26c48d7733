"""The compiled loop learns, repeats itself bit for bit, and treats the last partial batch as `keras.fit` does."""

from collections.abc import Iterator

import numpy as np
import pytest

from digits.data import sources
from digits.data.datasets import Dataset
from models import evaluation, export, onnx_model, training
from models.architectures import Convolutional, Dense
from models.augmentation import Augmentation
from models.gate import GatePolicy
from models.recipes import COMPACT, SIGMOID
from models.training import Recipe

QUICK = COMPACT.model_copy(update={"epochs": 3, "batch_size": 16})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return sources.read("bundled", mnist=None, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> training.TrainingResult:
    return training.fit(QUICK, dataset)


def test_it_learns_real_digits(dataset: Dataset, trained: training.TrainingResult) -> None:
    probabilities = training.predict_proba(trained.model, dataset.test.images)
    assert evaluation.accuracy(probabilities, dataset.test.labels).value > 0.9
    assert len(trained.history) == 3
    assert trained.images_seen == 3 * len(dataset.train)
    assert trained.history[-1]["train_loss"] < trained.history[0]["train_loss"] / 2
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_same_seed_gives_the_same_weights(dataset: Dataset, trained: training.TrainingResult) -> None:
    assert training.fit(QUICK, dataset).weights_hash == trained.weights_hash
    other = training.fit(QUICK.model_copy(update={"seed": 1}), dataset)
    assert other.weights_hash != trained.weights_hash


def test_other_threads_do_not_change_the_weights() -> None:
    """Python's generator is shared by all threads, and Keras draws its seeds from it where it is given none."""
    import keras

    recipe = QUICK.model_copy(update={"architecture": Dense(hidden=(128, 64), dropout=0.5)})
    keras.utils.set_random_seed(1)
    first = training.build(recipe)
    keras.utils.set_random_seed(2)
    second = training.build(recipe)
    image = np.full((1, 28, 28), 255, dtype=np.uint8)
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(first(image, training=True), second(image, training=True))  # the same units dropped


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_epoch_equals_keras_fit(dataset: Dataset, optimizer: str) -> None:
    """Same start, same order, same partial last batch: `keras.Model.fit` without shuffling is the oracle."""
    import keras

    recipe = Recipe(
        name="x", architecture=Dense(hidden=(16,)), optimizer=optimizer, learning_rate=0.01, epochs=1, batch_size=100
    )  # type: ignore[arg-type]
    network = training.Network(recipe, dataset)
    assert len(dataset.train) % recipe.batch_size  # a partial batch is there
    start = network.model.get_weights()
    metrics = next(iter(network.epochs()))
    order = np.random.default_rng((recipe.seed, 0)).permutation(len(dataset.train))
    model = training.build(recipe)
    model.set_weights(start)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[optimizer](0.01), loss=loss, metrics=["accuracy"]
    )
    fitted = model.fit(
        dataset.train.images[order], dataset.train.labels[order], batch_size=100, shuffle=False, verbose=0
    )
    for ours, theirs in zip(network.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert metrics["train_loss"] == pytest.approx(fitted.history["loss"][0], rel=1e-3)
    assert metrics["train_accuracy"] == pytest.approx(fitted.history["accuracy"][0], abs=0.002)


def test_patience_stops_early_and_restores_the_best_weights(dataset: Dataset) -> None:
    recipe = QUICK.model_copy(update={"epochs": 60, "patience": 2, "learning_rate": 0.01})
    trained = training.fit(recipe, dataset)
    accuracies = [epoch["val_accuracy"] for epoch in trained.history]
    best = int(np.argmax(accuracies))
    assert len(accuracies) == best + 3 < 60
    probabilities = training.predict_proba(trained.model, dataset.validation.images)
    assert evaluation.accuracy(probabilities, dataset.validation.labels).value == pytest.approx(accuracies[best])


def test_sigmoid_outputs_are_divided_by_their_sum(dataset: Dataset) -> None:
    """The probabilities are sigmoids over their sum, which is what Keras's cross-entropy makes of them."""
    model = training.build(SIGMOID)
    kernel, bias = model.get_weights()
    images = dataset.test.images[:20]
    sigmoids = 1 / (1 + np.exp(-(images.reshape(20, -1) / 255 @ kernel + bias)))
    logits = training.forward(model, images)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, sigmoids / sigmoids.sum(axis=1, keepdims=True), atol=1e-6)


def test_an_ensemble_is_the_geometric_mean_of_its_models(dataset: Dataset) -> None:
    augmentation = Augmentation(elastic_pixels=8)
    fields = {"architecture": Dense(hidden=(32,)), "epochs": 2, "n_models": 2, "augmentation": augmentation}
    recipe = QUICK.model_copy(update=fields)
    ensemble = training.fit(recipe, dataset)
    members = [training.fit(recipe.model_copy(update={"n_models": 1, "seed": seed}), dataset) for seed in (0, 1)]
    images = dataset.test.images
    logs = [np.log(training.predict_proba(one.model, images)) * one.temperature for one in members]
    expected = np.exp(np.mean(logs, axis=0) / ensemble.temperature)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(training.predict_proba(ensemble.model, images), expected, atol=1e-4)


def test_a_convolutional_network_trains_exports_and_may_be_served(dataset: Dataset) -> None:
    architecture = Convolutional(
        filters=(8, 16), kernels=(5, 3), strides=(2, 2), dense=64, batch_norm=True, dropout=0.2
    )
    recipe = QUICK.model_copy(update={"architecture": architecture, "epochs": 5})
    model = training.fit(recipe, dataset).model
    probabilities = training.predict_proba(model, dataset.test.images)
    assert evaluation.accuracy(probabilities, dataset.test.labels).value > 0.8
    content = export.to_onnx(model)
    export.check_equal(onnx_model.load(content).predict_proba(dataset.test.images), probabilities, dataset.test.images)
    assert len(content) < GatePolicy().max_bytes
    assert 4 * training.build(recipe.model_copy(update={"architecture": Convolutional()})).count_params() < 4_000_000


def test_a_convolutional_network_has_the_sizes_and_dropouts_that_its_fields_say() -> None:
    architecture = Convolutional(filters=(4, 8, 8), kernels=(3, 5, 3), strides=(1, 2, 1), dense=16, dropout=0.5)
    layers = training.build(QUICK.model_copy(update={"architecture": architecture})).layers
    shapes = [layer.output.shape[1:] for layer in layers if layer.__class__.__name__ == "Conv2D"]
    assert shapes == [(26, 26, 4), (13, 13, 8), (11, 11, 8)]
    names = [layer.__class__.__name__ for layer in layers]
    assert names.count("Dropout") == 2  # behind the convolution of step 2 and behind the dense layer
    assert names[names.index("Dropout") - 1] == "Activation"


def test_the_temperature_makes_overconfident_answers_modest() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 5000).astype(np.uint8)
    honest = random.normal(size=(5000, 10)) + 3 * np.eye(10)[labels] * (random.random((5000, 1)) < 0.8)
    sharp = training.fit_temperature((honest * 5).astype(np.float32), labels)
    assert sharp == pytest.approx(5 * training.fit_temperature(honest.astype(np.float32), labels), rel=0.01)


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    """Keras keeps every model of the process otherwise."""
    yield
    import keras

    keras.backend.clear_session()
