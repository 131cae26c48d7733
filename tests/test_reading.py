"""The likeliest text of a line, with a model that knows the drawn shapes by their number of holes and their width."""

import cv2
import numpy as np
import pytest

from digits.images import Images
from digits.pictures.ink import Ink
from models import reading
from models.onnx_model import Output


def predict(images: Images) -> Output:
    """0 for one hole, 8 for two, 1 for a narrow stroke without; anything else is no digit."""
    probabilities, scores = np.full((len(images), 10), 0.001, np.float32), np.full(len(images), -6, np.float32)
    for row, image in enumerate(images):
        padded = np.pad((image > 100).astype(np.uint8), 1)
        holes = cv2.connectedComponents(1 - padded, connectivity=4)[0] - 2
        width = np.ptp(np.flatnonzero((image > 100).any(axis=0))) + 1
        digit = {0: 1, 1: 0, 2: 8}.get(holes, 5)
        if holes in (1, 2) or width <= 6:
            scores[row] = 8
        probabilities[row, digit] = 0.8
        probabilities[row, 7] += 0.15
    return Output(probabilities / probabilities.sum(axis=1, keepdims=True), scores)


def line(text: str, distance: int = 45) -> Ink:
    ink = np.zeros((64, 60 + distance * len(text)), np.uint8)
    for number, sign in enumerate(text):
        x = 30 + distance * number
        if sign == "0":
            cv2.ellipse(ink, (x, 32), (15, 22), 0, 0, 360, 255, 5)
        elif sign == "1":
            cv2.line(ink, (x, 10), (x, 54), 255, 6)
        elif sign == ".":
            cv2.rectangle(ink, (x - 3, 49), (x + 3, 55), 255, -1)
    return ink


def read(ink: Ink, pattern: str | None = None, length: int | None = None) -> reading.Reading:
    return reading.read(ink, predict, reading.patterns(pattern, length))


def test_a_line_is_read_with_the_box_of_each_digit() -> None:
    found = read(line("0110"))
    assert (found.text, found.fits, found.left_out) == ("0110", True, 0)
    assert 0.3 < found.confidence <= 1
    for number, digit in enumerate(found.digits):
        left, top, right, bottom = digit.bounds
        assert left <= 30 + 45 * number <= right
        assert top <= 12
        assert bottom >= 52
        assert digit.image.shape == (28, 28)


@pytest.mark.parametrize("distance", [35, 33])
def test_digits_that_touch_are_cut(distance: int) -> None:
    assert read(line("000", distance)).text == "000"


def test_the_model_gets_each_image_once_and_the_digits_have_its_output() -> None:
    images: list[bytes] = []

    def recorded(some: Images) -> Output:
        images.extend(image.tobytes() for image in some)
        return predict(some)

    found = reading.read(line("01"), recorded, reading.patterns())
    assert len(images) == len(set(images))
    asked = predict(np.stack([digit.image for digit in found.digits]))
    np.testing.assert_array_equal([digit.probabilities for digit in found.digits], asked.probabilities)
    assert [digit.digit_score for digit in found.digits] == asked.digit_scores.tolist()


def test_a_decimal_point_stands_between_digits() -> None:
    found = read(line("10.1"))
    assert (found.text, len(found.digits)) == ("10.1", 3)
    assert read(line("101.")).text == "101"


def test_a_pattern_or_length_chooses_the_likeliest_text_that_fits() -> None:
    assert read(line("011"), "0[0-9]7").text == "017"
    found = read(line("011"), length=5)
    assert (found.text, found.fits) == ("011", False)


def test_a_pattern_lowers_no_other_text_s_share() -> None:
    """The confidence is the share among the texts that fit."""
    assert read(line("011"), "011").confidence == pytest.approx(1)
    assert read(line("011")).confidence < 0.9


def test_what_is_no_digit_is_left_out_and_counted() -> None:
    ink = line("0 0", 45)
    ink[20:44, 60:90] = 255
    found = read(ink)
    assert (found.text, found.left_out) == ("00", 1)


def test_a_line_without_ink_has_no_text() -> None:
    found = read(np.zeros((48, 100), np.uint8))
    assert (found.text, found.digits) == ("", [])


@pytest.mark.parametrize(
    ("pattern", "length", "sentence"),
    [("(", None, "expected a regular expression"), ("1" * 201, None, "at most 200"), (None, 0, "from 1 to 100")],
)
def test_a_wrong_option_is_refused(pattern: str | None, length: int | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        reading.patterns(pattern, length)


def test_a_pattern_that_takes_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r'pattern is "\(0\|0.* and takes too long to match; send one without nested'):
        read(line("0" * 40), "(0|0?0?)*(0|00)*(0|00)*(0*)*x")


def test_all_lines_of_a_picture_share_the_time_for_their_pattern() -> None:
    patterns = reading.patterns("[01]*")
    assert reading.read(line("01"), predict, patterns).fits
    assert 0 < patterns.seconds < reading.MATCH_SECONDS
    patterns.seconds = 0
    with pytest.raises(ValueError, match="takes too long"):
        reading.read(line("01"), predict, patterns)
