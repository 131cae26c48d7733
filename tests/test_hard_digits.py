"""Digits as they arrive in the field take the path of the service and keep their label."""

import io

import numpy as np
import pytest
from monitored import held_out
from numpy.typing import NDArray
from PIL import Image

from digits.images import Split
from digits.pictures import hard_digits, rectification

DIGITS = Split(*(values[:100] for values in held_out()))


def test_coarse_digits_are_what_the_service_makes_of_their_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[NDArray[np.uint8]] = []
    from_grey = rectification.from_grey

    def recording(scan: NDArray[np.uint8]) -> NDArray[np.uint8]:
        scans.append(scan)
        return from_grey(scan)

    with monkeypatch.context() as patch:
        patch.setattr(rectification, "from_grey", recording)
        made = hard_digits.coarse(DIGITS, 20, np.random.default_rng(0))
    assert len(made) == len(scans) == 20
    for scan, image in zip(scans, made.images, strict=True):
        file = io.BytesIO()
        Image.fromarray(scan).save(file, "PNG")
        assert max(scan.shape) <= 12 and np.array_equal(rectification.decode(file.getvalue()), image)


def test_hard_digits_keep_their_label_and_the_form_of_their_digit() -> None:
    """The nearest of the digits that they were made of has their label more often than not, which by chance one in ten has."""
    originals = DIGITS.images.reshape(len(DIGITS), -1).astype(float)
    originals /= np.linalg.norm(originals, axis=1, keepdims=True)
    for make in (hard_digits.coarse, hard_digits.cut):
        made = make(DIGITS, 60, np.random.default_rng(1))
        nearest = (made.images.reshape(60, -1) @ originals.T).argmax(axis=1)
        assert (DIGITS.labels[nearest] == made.labels).mean() > 0.7


def test_the_same_seed_makes_the_same_digits() -> None:
    first, second = (hard_digits.cut(DIGITS, 10, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)
