"""How fast `compact` trains at batch 32: our loop against plain `keras.fit`, PyTorch, scikit-learn and JAX, side by side.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.training

Every contestant trains the same network on the same 48,000 images in a process of its own, one after another, in several rounds;
an epoch to compile and warm up is not timed. PyTorch and JAX take part where they can be imported, and are no dependency.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from digits.data import datasets, sources
from digits.data.datasets import Dataset
from digits.settings import load_settings
from models.recipes import COMPACT

BATCH, RATE = COMPACT.batch_size, COMPACT.learning_rate
# The hidden layers of `compact`.
HIDDEN = (128, 64)
LAYERS = (784, *HIDDEN, 10)


def ours(data: Dataset, epochs: int) -> tuple[float, float]:
    """Seconds for the epochs after the first, and accuracy on the test images; every contestant returns these."""
    from models import training

    network = training.Network(COMPACT.model_copy(update={"epochs": epochs + 1}), data)
    epochs_left = network.epochs()
    next(epochs_left)
    started = time.perf_counter()
    for _ in epochs_left:
        pass
    seconds = time.perf_counter() - started
    return seconds, _accuracy(training.forward(network.model, data.test.images), data)


def keras_fit(data: Dataset, epochs: int) -> tuple[float, float]:
    from models import backend, training

    keras, _ = backend.load()
    keras.utils.set_random_seed(0)
    model = training.build(COMPACT)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss=loss, metrics=["accuracy"])
    held_out = (data.validation.images, data.validation.labels)

    def fit(n: int) -> None:
        model.fit(data.train.images, data.train.labels, BATCH, n, verbose=0, validation_data=held_out)

    seconds = _timed(fit, epochs)
    return seconds, _accuracy(training.forward(model, data.test.images), data)


def pytorch(data: Dataset, epochs: int) -> tuple[float, float]:
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    for inputs, outputs in pairwise(LAYERS):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    images, labels = torch.from_numpy(_floats(data.train.images)), torch.from_numpy(data.train.labels.astype(np.int64))
    held_out = torch.from_numpy(_floats(data.validation.images))

    def fit(n: int) -> None:
        for _ in range(n):
            for index in torch.randperm(len(images)).split(BATCH):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
                optimizer.step()
            with torch.no_grad():
                model(held_out).argmax(1)

    seconds = _timed(fit, epochs)
    with torch.no_grad():
        return seconds, _accuracy(model(torch.from_numpy(_floats(data.test.images))).numpy(), data)


def scikit_learn(data: Dataset, epochs: int) -> tuple[float, float]:
    from sklearn.neural_network import MLPClassifier

    images = _floats(data.train.images)
    model = MLPClassifier(HIDDEN, batch_size=BATCH, learning_rate_init=RATE, alpha=0, random_state=0)
    digits = np.arange(10)

    def fit(n: int) -> None:
        # One call is one pass over the images.
        for _ in range(n):
            model.partial_fit(images, data.train.labels, classes=digits)
            model.predict(_floats(data.validation.images))

    seconds = _timed(fit, epochs)
    return seconds, _accuracy(model.predict_proba(_floats(data.test.images)), data)


def jax_scan(data: Dataset, epochs: int) -> tuple[float, float]:
    """A whole epoch in one `lax.scan`, with Adam written out as in its paper (Kingma and Ba 2015)."""
    import jax
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    images, labels = jnp.asarray(_floats(data.train.images)), jnp.asarray(data.train.labels.astype(np.int32))
    held_out = jnp.asarray(_floats(data.validation.images))
    weights = [
        (jnp.asarray(random.uniform(-1, 1, (a, b)) * np.sqrt(6 / (a + b)), jnp.float32), jnp.zeros(b))
        for a, b in pairwise(LAYERS)
    ]

    def logits(weights: Any, x: Any) -> Any:
        for kernel, bias in weights[:-1]:
            x = jax.nn.relu(x @ kernel + bias)
        return x @ weights[-1][0] + weights[-1][1]

    def loss(weights: Any, index: Any) -> Any:
        log_probabilities = jax.nn.log_softmax(logits(weights, images[index]))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[index][:, None], 1))

    def step(state: Any, index: Any) -> Any:
        weights, mean, square, t = state
        gradients = jax.grad(loss)(weights, index)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradients)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, gradients)
        rate = RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, mean, square)
        return (weights, mean, square, t + 1), None

    @jax.jit
    def epoch(state: Any, order: Any) -> Any:
        state, _ = jax.lax.scan(step, state, order)
        return state, logits(state[0], held_out).argmax(1)

    zeros = jax.tree.map(jnp.zeros_like, weights)
    state: Any = (weights, zeros, zeros, 1.0)

    def fit(n: int) -> None:
        nonlocal state
        for _ in range(n):
            order = random.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
            state, answers = epoch(state, jnp.asarray(order))
        answers.block_until_ready()

    seconds = _timed(fit, epochs)
    return seconds, _accuracy(np.asarray(logits(state[0], jnp.asarray(_floats(data.test.images)))), data)


CONTESTANTS: dict[str, tuple[str, Callable[[Dataset, int], tuple[float, float]]]] = {
    "digits": ("tensorflow", ours),
    "keras.fit": ("tensorflow", keras_fit),
    "PyTorch eager, fused Adam": ("torch", pytorch),
    "scikit-learn MLPClassifier": ("sklearn", scikit_learn),
    "JAX scan": ("jax", jax_scan),
}


def _timed(fit: Callable[[int], None], epochs: int) -> float:
    fit(1)
    started = time.perf_counter()
    fit(epochs)
    return time.perf_counter() - started


def _floats(images: Any) -> Any:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _accuracy(answers: Any, data: Dataset) -> float:
    return float((answers.argmax(axis=1) == data.test.labels).mean())


def _data() -> Dataset:
    settings = load_settings()
    data = sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)
    return datasets.resplit(data, COMPACT.validation_fraction or 0.2, seed=0)


def _run(name: str, epochs: int) -> dict[str, float]:
    """Run one contestant in a separate process."""
    command = [sys.executable, "-m", "bench.training", "--epochs", str(epochs), "--contestant", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed; its output is above")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Print a table of images per second, the ratio to ours in the same round, and accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS)
    arguments = parser.parse_args()
    if arguments.contestant:
        data = _data()
        seconds, accuracy = CONTESTANTS[arguments.contestant][1](data, arguments.epochs)
        print(json.dumps({"speed": arguments.epochs * len(data.train) / seconds, "accuracy": accuracy}))
        return
    present = [name for name, (library, _) in CONTESTANTS.items() if find_spec(library)]
    rounds = [{name: _run(name, arguments.epochs) for name in present} for _ in range(arguments.rounds)]
    print(f"{'compact, batch 32':28} {'images/s':>10} {'digits is':>10} {'accuracy':>9}")
    for name in CONTESTANTS:
        if name not in present:
            print(f"{name:28} not installed, not measured")
            continue
        speed = statistics.median(figures[name]["speed"] for figures in rounds)
        ratio = statistics.median(figures["digits"]["speed"] / figures[name]["speed"] for figures in rounds)
        print(f"{name:28} {speed:10,.0f} {ratio:8.1f} × {rounds[0][name]['accuracy']:9.4f}")


if __name__ == "__main__":
    main()
