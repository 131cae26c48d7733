"""Reference images that went through the service's decoder, and samples with the window's share of pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
from monitored import answer, held_out, reference
from numpy.typing import NDArray

from digits.images import Images
from digits.reference import Reference
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


def test_of_the_decoded_images_those_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_FILES", 6)
    monkeypatch.setattr(pictures, "decode", lambda images, form: images)
    images, files = held_out()[0], []
    for start in (0, 1, 0, 2):
        pictures.nearest(images[start : start + 5], images[:5], tmp_path)
        for path in tmp_path.iterdir():  # file systems may not tell two times apart
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
        files.append({path.name for path in tmp_path.iterdir()})
    first, second = files[0], files[1] - files[0]
    assert [len(names) for names in files] == [3, 6, 6, 6]
    assert first < files[3] and not second & files[3]


def test_the_decoded_images_are_of_the_whole_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images may be of other writers than the last: here the first half has no ink above the middle."""
    monkeypatch.setattr(pictures, "MAX_DECODED", 60)
    images = held_out()[0][:200].copy()
    images[:100, :14] = 0
    found = pictures.nearest(images, images, tmp_path)
    assert len(found) == 60 and 15 <= (found[:, :14].max(axis=(1, 2)) == 0).sum() <= 45


def test_the_version_says_of_pixels_and_pictures_which_show_no_digit(tmp_path: Path) -> None:
    def blank(images: Images) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return answer(images), images.max(axis=(1, 2)) == 0

    held = reference()
    first = np.arange(120)
    few = Reference(
        np.where(first[:, None, None] < 12, 0, held.images[:120]), held.labels[:120], held.probabilities[:120]
    )
    window = samples.join(sample(90), sample(30, is_picture=True))
    pixels, found = pictures.by_route(few, window, blank, tmp_path)
    assert pixels.no_digit is not None and pixels.no_digit.tolist() == (first < 12).tolist()
    assert found.no_digit is not None and len(found.no_digit) == len(found) > 0
    mixed = samples.match_routes(window, (pixels, found))
    assert mixed.no_digit is not None and len(mixed.no_digit) == len(mixed)
    assert samples.join(pixels, window).no_digit is None


def test_a_sample_is_mixed_as_the_window_is_and_the_last_pair_fills_gaps() -> None:
    window = samples.join(sample(75), sample(25, is_picture=True))
    few_pictures, tested = (sample(300), sample(10, True)), (sample(200), sample(150, True))
    mixed = samples.match_routes(window, few_pictures, tested)
    assert len(mixed) == 400 and mixed.is_picture.mean() == 0.25
    assert len(samples.match_routes(window, tested)) == 266
    assert len(samples.match_routes(sample(100), tested)) == 200
