"""The training loop: a Keras model and a Keras optimiser, one XLA-compiled call per epoch.

`keras.Model.fit` returns to Python after every step, which costs more than the arithmetic of a small network. Here the
images stay on the device and the whole epoch is one compiled function (measured by `python -m bench.training`).
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from digits.data.datasets import Dataset
from digits.images import NO_DIGIT, SIZE, Images, Labels, Split
from models import backend, synthetic
from models.architectures import Architecture
from models.augmentation import Augmentation, augment, ranges
from models.synthetic import Synthetic, TrainingImages

log = logging.getLogger("digits.training")

EpochMetrics = dict[str, float]
OnEpoch = Callable[[int, EpochMetrics], None]


class Recipe(BaseModel):
    """Everything a training depends on besides the data; the same fields are Prefect parameters and MLflow params."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name in the leaderboard.", pattern=r"^[a-z][a-z0-9-]*$")
    architecture: Architecture = Field(description="Layers of the network.")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="Keras optimiser.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate at the start.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Learning rate; cosine ends at 0.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, `adamw` only.")
    epochs: int = Field(ge=1, description="Passes over the training images, at most.")
    patience: int | None = Field(
        None, ge=1, description="Stop after so many epochs without gain, restore the best weights."
    )
    batch_size: int = Field(32, ge=1, description="Images per step.")
    validation_fraction: float | None = Field(
        None, gt=0, lt=1, description="Fraction of the training images; unless set, the data set's own."
    )
    augmentation: Augmentation | None = Field(None, description="Random change of the training images in every epoch.")
    synthetic: Synthetic | None = Field(None, description="Images that are made for the training.")
    n_models: int = Field(1, ge=1, description="Networks trained with consecutive seeds and averaged into one model.")
    seed: int = Field(0, ge=0, description="Seed of weights, order and augmentation.")


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, from `uint8` images to calibrated probabilities, and the record of its training."""

    model: Any  # keras.Model, (n, 28, 28) uint8 -> {"probabilities": (n, 10), "digit_score": (n,)}
    history: list[EpochMetrics]  # one per network and epoch: train_loss, train_accuracy, val_loss, val_accuracy
    seconds: float  # in the epochs, compilation included
    images_seen: int
    temperature: float  # the logits are divided by it

    @property
    def metrics(self) -> dict[str, float]:
        """What the training cost and how large the network is."""
        return {
            "train_seconds": self.seconds,
            "train_images_per_second": self.images_seen / self.seconds,
            "parameters": self.model.count_params(),
            "temperature": self.temperature,
        }

    @property
    def summary(self) -> str:
        """Keras's table of the layers."""
        lines: list[str] = []
        self.model.summary(print_fn=lines.append)
        return "\n".join(lines) + "\n"

    @property
    def weights_hash(self) -> str:
        """SHA-256 over all weights, in the order of the layers."""
        return hashlib.sha256(b"".join(weights.tobytes() for weights in self.model.get_weights())).hexdigest()


def fit(recipe: Recipe, dataset: Dataset, on_epoch: OnEpoch = lambda epoch, metrics: None) -> TrainingResult:
    """Train the recipe's networks, average them and calibrate the result on the validation images.

    The data set is trained on as it is split: `candidates.split` applies the recipe's `validation_fraction` before. The same
    recipe, data and seed give the same weights on the same machine and library versions.
    """
    models: list[Any] = []
    history: list[EpochMetrics] = []
    seconds, images_seen = 0.0, 0
    epochs = recipe.n_models * recipe.epochs
    log_interval = math.ceil(epochs / 10)
    with tqdm(total=epochs, unit="epoch", desc=recipe.name, disable=None) as progress:
        for number in range(recipe.n_models):
            network = Network(recipe.model_copy(update={"seed": recipe.seed + number}), dataset)
            for metrics in network.epochs():
                on_epoch(len(history), metrics)
                history.append(metrics)
                images_seen += len(network.images)
                reached = f"validation accuracy {metrics['val_accuracy']:.4f}"
                progress.update()
                progress.set_postfix_str(reached)
                # Without a terminal there is no progress bar.
                if progress.disable and len(history) % log_interval == 0:
                    log.info("%s: epoch %d of %d, %s", recipe.name, len(history), epochs, reached)
            models.append(network.model)
            seconds += network.seconds
    logits = _average(models)
    temperature = fit_temperature(forward(logits, dataset.validation.images)[:, :10], dataset.validation.labels)
    return TrainingResult(_with_outputs(logits, temperature), history, seconds, images_seen, temperature)


def build(recipe: Recipe) -> Any:
    """The untrained `keras.Model`: (n, 28, 28) `uint8` images -> (n, 10) logits, or (n, 11) with one for no digit."""
    keras, _ = backend.load()

    # The seeds that Keras would draw after `set_random_seed`, but not from the global generator, which other threads share.
    next_seed = partial(Random(recipe.seed).randint, 1, int(1e9))
    images = keras.Input((SIZE, SIZE), dtype="uint8", name="images")
    outputs = NO_DIGIT + 1 if recipe.synthetic else 10
    logits = recipe.architecture.build(keras.layers.Rescaling(1 / 255)(images), next_seed, outputs)
    return keras.Model(images, logits, name=recipe.name.replace("-", "_"))


class Network:
    """One network in training: its weights, its optimiser and the compiled epoch."""

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        self.recipe, self.validation = recipe, dataset.validation
        train = dataset.train
        self.images = synthetic.made(train, recipe.synthetic, recipe.seed) if recipe.synthetic else train
        self.model = build(recipe)
        self.seconds = 0.0
        steps = math.ceil(len(self.images) / recipe.batch_size) * recipe.epochs
        optimizer = _optimizer(recipe, steps)
        optimizer.build(self.model.trainable_variables)
        batch_size = min(recipe.batch_size, len(self.images))
        self._run_epoch = _compile_epoch(self.model, optimizer, batch_size, recipe.architecture.xla)

    def epochs(self) -> Iterator[EpochMetrics]:
        """Train and yield the metrics of each epoch; the model ends with the last or, with patience, the best weights."""
        best, best_epoch, best_weights = -1.0, 0, None
        for epoch, (images, labels) in enumerate(self._epochs_of_images()):
            started = time.perf_counter()
            metrics = self._train(epoch, images, labels) | self._validate()
            self.seconds += time.perf_counter() - started
            yield metrics
            if self.recipe.patience is None:
                continue
            if metrics["val_accuracy"] > best:
                best, best_epoch, best_weights = metrics["val_accuracy"], epoch, self.model.get_weights()
            elif epoch - best_epoch >= self.recipe.patience:
                break
        if best_weights is not None:
            self.model.set_weights(best_weights)

    def _train(self, epoch: int, images: Images, labels: Labels) -> EpochMetrics:
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(images)).astype(np.int32)
        loss, correct = self._run_epoch(images, labels, order)
        return {"train_loss": float(loss) / len(images), "train_accuracy": float(correct) / len(images)}

    def _validate(self) -> EpochMetrics:
        _, tf = backend.load()

        logits, labels = forward(self.model, self.validation.images)[:, :10], self.validation.labels
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels.astype(np.int32), logits)
        accuracy = float((logits.argmax(axis=1) == labels).mean())
        return {"val_loss": float(tf.reduce_mean(losses)), "val_accuracy": accuracy}

    def _epochs_of_images(self) -> Iterator[tuple[Images, Labels]]:
        """The images and labels of each epoch; a thread makes those of the next epoch while the current one is trained."""
        recipe = self.recipe
        if recipe.augmentation is None and isinstance(self.images, Split):
            yield from ((self.images.images, self.images.labels) for _ in range(recipe.epochs))
            return
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(_of_epoch, self.images, recipe, 0)
            for epoch in range(recipe.epochs):
                current = ready.result()
                if epoch + 1 < recipe.epochs:
                    ready = pool.submit(_of_epoch, self.images, recipe, epoch + 1)
                yield current


def _of_epoch(images: Split | TrainingImages, recipe: Recipe, epoch: int) -> tuple[Images, Labels]:
    progress, random = epoch / max(1, recipe.epochs - 1), np.random.default_rng((recipe.seed, epoch, 1))
    chosen, labels = (images.images, images.labels) if isinstance(images, Split) else images.of_epoch(progress, random)
    if recipe.augmentation is None:
        return chosen, labels
    return augment(chosen, ranges(recipe.augmentation, progress), random), labels


def _optimizer(recipe: Recipe, steps: int) -> Any:
    keras, _ = backend.load()

    rate: Any = recipe.learning_rate
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps)
    if recipe.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
    return {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[recipe.optimizer](rate)


def _compile_epoch(model: Any, optimizer: Any, batch_size: int, xla: bool) -> Any:
    """A function of (images, labels, order) that trains one epoch, the last partial batch included.

    It returns the sum of the losses and the number of correct predictions, each computed before the step on its batch.
    """
    _, tf = backend.load()

    def step(images: Any, labels: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        correct = tf.equal(tf.argmax(logits, 1, tf.int32), labels)
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(correct, tf.float32))

    @tf.function(jit_compile=xla)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def epoch(images: Any, labels: Any, order: Any) -> tuple[Any, Any]:
        loss, correct = tf.constant(0.0), tf.constant(0.0)
        whole, rest = divmod(images.shape[0], batch_size)
        for i in tf.range(whole):
            index = tf.slice(order, [i * batch_size], [batch_size])
            step_loss, step_correct = step(tf.gather(images, index), tf.gather(labels, index))
            loss, correct = loss + step_loss, correct + step_correct
        if rest:
            step_loss, step_correct = step(tf.gather(images, order[-rest:]), tf.gather(labels, order[-rest:]))
            loss, correct = loss + step_loss, correct + step_correct
        return loss, correct

    # Most recipes train on the same images again: they stay on the device.
    on_device: tuple[Images | None, Any] = (None, None)

    def run(images: Images, labels: Labels, order: NDArray[np.int32]) -> tuple[Any, Any]:
        nonlocal on_device
        if images is not on_device[0]:
            on_device = images, tf.constant(images)
        loss, correct = epoch(on_device[1], tf.constant(labels.astype(np.int32)), tf.constant(order))
        return loss.numpy(), correct.numpy()

    return run


def forward(model: Any, images: Images) -> NDArray[np.float32]:
    """The logits (n, 10 or 11) of a network, without the Python overhead of `predict`."""
    return np.concatenate([model.predict_on_batch(part) for part in _parts(images)])


def predict_proba(model: Any, images: Images) -> NDArray[np.float32]:
    """The probabilities (n, 10) of a trained model."""
    return np.concatenate([model.predict_on_batch(part)["probabilities"] for part in _parts(images)])


def _parts(images: Images, size: int = 2500) -> Iterator[Images]:
    return (images[start : start + size] for start in range(0, len(images), size))


def fit_temperature(logits: NDArray[np.float32], labels: Labels) -> float:
    """The temperature between 0.1 and 10 with the least log loss (Guo et al. 2017, "On calibration of modern neural networks")."""
    from scipy.optimize import minimize_scalar  # takes 1 s to import, and only training needs it
    from scipy.special import log_softmax

    logits64, rows = logits.astype(np.float64), np.arange(len(labels))

    def log_loss(log_temperature: float) -> float:
        return -float(log_softmax(logits64 / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def _average(models: list[Any]) -> Any:
    """One model with the mean of the models' logits, which is the normalised geometric mean of their probabilities."""
    keras, _ = backend.load()

    if len(models) == 1:
        return models[0]
    images = keras.Input((SIZE, SIZE), dtype="uint8", name="images")
    for number, model in enumerate(models):
        model.name = f"model_{number}"
    return keras.Model(images, keras.layers.Average()([model(images) for model in models]), name="ensemble")


def _with_outputs(logits: Any, temperature: float) -> Any:
    """The model with its temperature and softmax as last layers, so that every copy of it gives the same probabilities.

    The digit score is the log-odds of a digit against none. Without an output for none, it is the negative energy (Liu et al. 2020,
    "Energy-based out-of-distribution detection"), which orders images less well.
    """
    keras, _ = backend.load()

    digits, score = logits.output[:, :10], keras.ops.logsumexp(logits.output[:, :10], axis=1)
    if logits.output.shape[1] > NO_DIGIT:
        score = score - logits.output[:, NO_DIGIT]
    scaled = keras.layers.Rescaling(1 / temperature, name="temperature")(digits)
    outputs = {"probabilities": keras.layers.Softmax(name="probabilities")(scaled), "digit_score": score}
    return keras.Model(logits.input, outputs, name=logits.name)
