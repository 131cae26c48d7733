"""Figures of a run: learning curves, confusion matrix, training samples, predictions, most confident mistakes."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images, Labels, Split

if TYPE_CHECKING:  # matplotlib takes 1 s, and only a training draws
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE, GAP = 8, 6  # pixels of a gallery above and between its images
RIGHT, WRONG = "#2a7f62", "#b3261e"


def curves(history: Sequence[dict[str, float]]) -> "Figure":
    """Loss and accuracy of training and validation, one point per epoch."""
    figure, (loss, accuracy) = _axes(1, 2, (10, 4))
    epochs = range(1, len(history) + 1)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(epochs, [row[f"train_{name}"] for row in history], marker=".", label="training")
        axes.plot(epochs, [row[f"val_{name}"] for row in history], marker=".", label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion(counts: NDArray[np.int64]) -> "Figure":
    """The (10, 10) counts; only mistakes are coloured, because correct predictions would outshine them."""
    figure, (axes,) = _axes(1, 1, (6.5, 6))
    mistakes = counts.astype(float)
    np.fill_diagonal(mistakes, np.nan)
    axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=max(1.0, np.nanmax(mistakes)))
    for true, answered in np.ndindex(10, 10):
        count = counts[true, answered]
        if count:
            dark = true != answered and mistakes[true, answered] > 0.6 * np.nanmax(mistakes)
            color = "white" if dark else "black"
            axes.text(answered, true, str(count), ha="center", va="center", fontsize=8, color=color)
    accuracy = np.trace(counts) / counts.sum()
    axes.set(xticks=range(10), yticks=range(10), xlabel="answered", ylabel="true digit")
    axes.set_title(f"{100 * accuracy:.2f} % of {counts.sum():,} test images")
    return figure


def samples(split: Split, each: int = 8) -> "Figure":
    """The first images of every digit, one row per digit."""
    chosen = np.concatenate([np.flatnonzero(split.labels == digit)[:each] for digit in range(10)])
    titles = [str(split.labels[i]) for i in chosen]
    return _gallery(split.images[chosen], titles, ["black"] * len(chosen), columns=each)


def answers(split: Split, probabilities: NDArray[np.float32], most: int = 32) -> "Figure":
    """Test images with prediction and probability, green if correct, else red with the true digit."""
    return _answered(split, probabilities, np.arange(min(most, len(split))))


def mistakes(split: Split, probabilities: NDArray[np.float32], most: int = 32) -> "Figure":
    """The wrong predictions with the highest probability."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != split.labels)
    surest_first = wrong[np.argsort(-probabilities[wrong].max(axis=1))]
    return _answered(split, probabilities, surest_first[:most])


def suspected(
    images: Images, labels: Labels, predicted: Labels, probabilities: NDArray[np.float32], most: int = 48
) -> "Figure":
    """Images whose label is probably wrong: the label, the out-of-sample prediction, and the probability of the label."""
    shown = range(min(most, len(predicted)))
    titles = [f"{labels[i]} → {predicted[i]}? ({probabilities[i]:.1%})" for i in shown]
    return _gallery(images[: len(shown)], titles, [WRONG] * len(shown), columns=8)


def png(figure: "Figure") -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _answered(split: Split, probabilities: NDArray[np.float32], chosen: NDArray[np.int64]) -> "Figure":
    titles, colours = [], []
    for i in chosen:
        digit, true = int(probabilities[i].argmax()), int(split.labels[i])
        right = digit == true
        titles.append(f"{digit} ({probabilities[i, digit]:.0%})" + ("" if right else f", is {true}"))
        colours.append(RIGHT if right else WRONG)
    return _gallery(split.images[chosen], titles, colours, columns=8)


def _gallery(images: Images, titles: list[str], colours: list[str], columns: int) -> "Figure":
    """All images in one mosaic with titles; an axes per image would take seconds to draw."""
    rows = max(1, math.ceil(len(images) / columns))
    figure, (axes,) = _axes(1, 1, (1.25 * columns, 1.4 * rows))
    height, width = SIZE + TITLE, SIZE + GAP
    mosaic = np.full((rows * height, columns * width), 255, np.uint8)
    for index, (image, title, colour) in enumerate(zip(images, titles, colours, strict=True)):
        top, left = height * (index // columns) + TITLE, width * (index % columns) + GAP // 2
        mosaic[top : top + SIZE, left : left + SIZE] = 255 - image
        axes.text(left + SIZE / 2, top - 2, title, fontsize=8, color=colour, ha="center", va="bottom")
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    return figure


def _axes(rows: int, columns: int, inches: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """A figure without pyplot, which would never free it in a long-running process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns)))
