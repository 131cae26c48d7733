"""Reference images that went through the service's decoder, and samples with the window's share of pictures."""

from pathlib import Path

import numpy as np
import pytest
from monitored import answer, held_out, reference

from monitoring import pictures, samples
from monitoring.samples import Sample


def sample(count: int, is_picture: bool = False) -> Sample:
    images = held_out()[0][:count]
    return samples.of_images(images, answer(images), is_picture)


def test_the_form_of_the_windows_pictures_is_recognised_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_DECODED", 60)
    window = pictures.decode(held_out()[0][:60], "enlarged")
    found = pictures.nearest(reference().images, window, tmp_path)
    drawn = np.random.default_rng(0).permutation(len(reference()))[:60]
    assert np.array_equal(found, pictures.decode(reference().images[drawn], "enlarged"))
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(pictures.nearest(reference().images, window, tmp_path), found)


def test_the_decoded_images_are_of_the_whole_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images may be of other writers than the last: here the first half has no ink above the middle."""
    monkeypatch.setattr(pictures, "MAX_DECODED", 60)
    images = held_out()[0][:200].copy()
    images[:100, :14] = 0
    found = pictures.nearest(images, images, tmp_path)
    assert len(found) == 60 and 15 <= (found[:, :14].max(axis=(1, 2)) == 0).sum() <= 45


def test_a_sample_is_mixed_as_the_window_is_and_the_last_pair_fills_gaps() -> None:
    window = samples.join(sample(75), sample(25, is_picture=True))
    few_pictures, tested = (sample(300), sample(10, True)), (sample(200), sample(150, True))
    mixed = samples.match_routes(window, few_pictures, tested)
    assert len(mixed) == 400 and mixed.is_picture.mean() == 0.25
    assert len(samples.match_routes(window, tested)) == 266
    assert len(samples.match_routes(sample(100), tested)) == 200
