"""Labelling in a folder: an image that an auditor moves into the sub-folder `0` to `9` or `no-digit` gets that label.

An image that is moved again corrects the label; one that stays does not override a label that was given later.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine

from digits.images import NO_DIGIT
from digits.storage import labels, predictions
from digits.storage.labels import AUDITOR
from digits.storage.predictions import UnknownPrediction

# A file's time may be this much earlier than the system time.
CLOCK_TOLERANCE = timedelta(seconds=1)
FOLDERS = {**{digit: str(digit) for digit in range(10)}, NO_DIGIT: "no-digit"}
# Each pixel becomes a square of this size.
SQUARE = np.ones((10, 10), np.uint8)


def collect(engine: Engine, folder: Path) -> int:
    """Label the predictions whose images are in the sub-folders; returns their number, without those the log no longer has."""
    labelled = 0
    labelled_at = labels.times(engine, AUDITOR)
    for label, path in _sorted_by_hand(folder):
        moved_at = datetime.fromtimestamp(path.stat().st_ctime, UTC) + CLOCK_TOLERANCE
        with suppress(UnknownPrediction):
            if path.stem not in labelled_at or labelled_at[path.stem] < moved_at:
                predictions.label(engine, path.stem, label, AUDITOR)
            labelled += 1
    return labelled


def _sorted_by_hand(folder: Path) -> Iterator[tuple[int, Path]]:
    for label, name in FOLDERS.items():
        for path in sorted(folder.glob(f"{name}/*.png")):
            yield label, path


def write_images(answers: Iterable[tuple[str, NDArray[np.uint8]]], folder: Path, max_images: int) -> int:
    """Write images by their prediction ids, dark on light, until `max_images` have no label; returns the number of these.

    They are drawn at random, because the first ones in time would show the digits of one hour.
    """
    for name in FOLDERS.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    images = dict(answers)
    waiting = len(list(folder.glob("*.png")))
    candidates = sorted(images.keys() - {path.stem for path in folder.rglob("*.png")})
    chosen = random.sample(candidates, min(len(candidates), max(max_images - waiting, 0)))
    for id in chosen:
        Image.fromarray(np.kron(255 - images[id], SQUARE)).save(folder / f"{id}.png")
    return waiting + len(chosen)
