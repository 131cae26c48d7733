"""The pictures of a run can be drawn for any outcome, perfect and hopeless ones too."""

import io

import numpy as np
import pytest
from PIL import Image

from digits.images import Split
from models import figures

LABELS = (np.arange(40) % 10).astype(np.uint8)
SPLIT = Split(np.random.default_rng(0).integers(0, 255, (40, 28, 28)).astype(np.uint8), LABELS)
HISTORY = [
    {"train_loss": 1 / e, "train_accuracy": 1 - 1 / e, "val_loss": 1 / e, "val_accuracy": 0.5} for e in (2, 3, 4)
]


def colours(figure: object) -> int:
    """How many colours the drawn picture has: a blank one has one."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # type: ignore[attr-defined]
    found = Image.open(buffer).convert("RGB").getcolors(1 << 24)
    assert found is not None
    return len(found)


@pytest.mark.parametrize("answered", [LABELS, (LABELS + 1) % 10], ids=["all right", "all wrong"])
def test_every_picture_is_drawn(answered: np.ndarray) -> None:
    probabilities = (0.9 * np.eye(10)[answered] + 0.01).astype(np.float32)
    counts = np.zeros((10, 10), np.int64)
    np.add.at(counts, (LABELS, answered), 1)
    for figure in (
        figures.curves(HISTORY),
        figures.confusion(counts),
        figures.samples(SPLIT, each=4),
        figures.answers(SPLIT, probabilities),
    ):
        assert colours(figure) > 10


def test_mistakes_are_shown_the_surest_first() -> None:
    answered = LABELS.copy()
    answered[[3, 7]] = 0
    probabilities = np.eye(10)[answered] * 0.5 + 0.05
    probabilities[7] = np.eye(10)[0] * 0.9 + 0.01
    (axes,) = figures.mistakes(SPLIT, probabilities.astype(np.float32)).axes
    assert [text.get_text() for text in axes.texts] == ["0 (91%), is 7", "0 (55%), is 3"]
