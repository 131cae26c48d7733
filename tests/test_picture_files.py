"""Uploaded files become upright grey pixels, each once where they were repeated."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from digits.pictures import picture_files

Picture = NDArray[np.uint8]
RANDOM = np.random.default_rng(0)
SMALL: Picture = RANDOM.integers(0, 256, (12, 9), np.uint8)


@pytest.mark.parametrize("size", [(9 * 2, 12 * 2), (9 * 10, 12 * 10), (340, 450)])
def test_repeated_pixels_are_undone_also_where_their_number_varies(size: tuple[int, int]) -> None:
    repeated = np.asarray(Image.fromarray(SMALL).resize(size, Image.Resampling.NEAREST))
    assert np.array_equal(picture_files.unrepeated(repeated), SMALL)


def test_a_picture_that_was_cut_out_of_repeated_pixels_keeps_the_cut_ones() -> None:
    cut = np.kron(SMALL, np.ones((8, 8), np.uint8))[3:, :-5]
    assert np.array_equal(picture_files.unrepeated(cut), SMALL)


@pytest.mark.parametrize("method", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_other_pictures_stay_as_they_are(method: Image.Resampling) -> None:
    smooth = np.asarray(Image.fromarray(SMALL).resize((90, 120), method))
    square = np.zeros((300, 400), np.uint8)
    square[90:270, 120:300] = 255
    for picture in (SMALL, smooth, square, np.zeros((50, 50), np.uint8), np.zeros((1, 1), np.uint8)):
        assert picture_files.unrepeated(picture) is picture


def test_a_picture_on_its_side_is_opened_upright_with_the_size_that_it_has_then() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    file = io.BytesIO()
    Image.fromarray(np.rot90(SMALL)).save(file, "PNG", exif=exif)
    picture = picture_files.open_upright(file.getvalue(), 1024)
    assert picture.size == (9, 12) and np.array_equal(picture_files.to_grey(picture.image, 1024), SMALL)


def test_grey_is_told_from_colour_in_every_mode() -> None:
    grey = Image.fromarray(SMALL)
    for mode in ("L", "LA", "P", "RGB", "RGBA"):
        assert picture_files.is_colourless(grey.convert(mode)), mode
    assert not picture_files.is_colourless(Image.new("RGB", (28, 28), (10, 10, 11)))
