"""Auditing as a folder: pictures to be moved into sub-folders `0` to `9`, whose places are then the labels.

A picture that is moved on to another digit is a correction; one that stays says nothing against what an auditor said later.
"""

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine

from digits.images import SIZE
from digits.storage import predictions
from digits.storage.predictions import AUDITOR, UnknownPrediction

CLOCK = timedelta(seconds=1)  # by which the time of a file may be behind
ENLARGED = 10  # times, so that a file manager shows something


def collect(engine: Engine, folder: Path) -> int:
    """Label the answers whose pictures lie in the sub-folders; how many. Those that the log forgot are left out."""
    labelled = 0
    said = predictions.label_times(engine, AUDITOR)
    for digit in range(10):
        for path in sorted((folder / str(digit)).glob("*.png")):
            moved = datetime.fromtimestamp(path.stat().st_ctime, UTC) + CLOCK
            try:
                if path.stem not in said or said[path.stem] < moved:
                    predictions.label(engine, path.stem, digit, AUDITOR)
            except UnknownPrediction:
                continue
            labelled += 1
    return labelled


def lay_out(answers: Iterable[tuple[str, NDArray[np.uint8]]], folder: Path, most: int) -> int:
    """Write pictures of answers by their ids, dark on light, until so many lie there to be sorted; how many do.

    Of more than that the ones to label are drawn at random: those in the order of time would be the digits of one hour.
    """
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
    waiting = dict(answers)
    there = {path.stem for path in folder.glob("*.png")}
    sorted_already = {path.stem for path in folder.glob("[0-9]/*.png")}
    others = sorted(waiting.keys() - there - sorted_already)
    for id in random.sample(others, min(len(others), max(most - len(there), 0))):
        picture = Image.fromarray(255 - waiting[id]).resize(
            (ENLARGED * SIZE, ENLARGED * SIZE), Image.Resampling.NEAREST
        )
        picture.save(folder / f"{id}.png")
    return len(list(folder.glob("*.png")))
