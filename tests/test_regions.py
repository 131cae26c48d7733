"""Cuts of touching digits: between any two seams, and the digits themselves are among the regions."""

import cv2
import numpy as np

from digits.pictures import components, regions
from digits.pictures.ink import Ink
from digits.pictures.regions import Region


def touching_rings(shift: int = 30) -> tuple[Ink, list[Ink]]:
    """Two zeros that touch, and each alone."""
    alone = [np.zeros((60, 100), np.uint8) for _ in range(2)]
    for number, ink in enumerate(alone):
        cv2.ellipse(ink, (25 + shift * number, 30), (15, 24), 0, 0, 360, 255, 5)
    return np.maximum(*alone), alone


def regions_of(ink: Ink) -> list[Region]:
    found = components.components(ink)
    return regions.regions(found, regions.nodes(ink, found, [True] * len(found)))


def overlap(region: Region, digit: Ink) -> float:
    """Intersection over union of the ink."""
    own = np.zeros(digit.shape, bool)
    for piece in region.pieces:
        own[piece.top : piece.bottom, piece.left : piece.right] |= piece.mask
    return float((own & (digit > 0)).sum() / (own | (digit > 0)).sum())


def test_two_digits_that_touch_are_among_the_regions() -> None:
    ink, alone = touching_rings()
    found = regions_of(ink)
    for digit in alone:
        assert max(overlap(region, digit) for region in found) > 0.9


def test_every_way_through_the_regions_has_all_ink() -> None:
    ink, _ = touching_rings()
    area = {(one.start, one.end): sum(int(piece.mask.sum()) for piece in one.pieces) for one in regions_of(ink)}
    last = max(end for _, end in area)
    halves = [area[0, cut] + area[cut, last] for cut in range(1, last) if {(0, cut), (cut, last)} <= area.keys()]
    assert halves
    assert set(halves) == {np.count_nonzero(ink > 110)}


def test_broken_strokes_are_put_together_and_distant_ones_are_not() -> None:
    ink = np.zeros((60, 200), np.uint8)
    ink[6:12, 10:35] = ink[20:54, 10:16] = ink[6:54, 120:126] = 255
    pieces = [len(region.pieces) for region in regions_of(ink)]
    assert sorted(pieces) == [1, 1, 1, 2]


def test_a_component_that_is_surely_one_digit_is_not_cut() -> None:
    ink, _ = touching_rings()
    found = components.components(ink)
    assert len(regions.nodes(ink, found, [False])) == 2


def test_a_scribble_is_not_cut() -> None:
    ink = np.zeros((60, 1000), np.uint8)
    points = np.column_stack([np.arange(10, 990, 10), np.tile([10, 50], 49)]).astype(np.int32)
    cv2.polylines(ink, [points], False, 255, 4)
    assert len(regions_of(ink)) == 1


def test_the_image_of_a_region_is_framed_as_in_mnist() -> None:
    ink, alone = touching_rings()
    region = max(regions_of(ink), key=lambda one: overlap(one, alone[0]))
    image = regions.image(ink, region)
    assert image.shape == (28, 28)
    assert max(np.ptp(np.flatnonzero(image.any(axis))) + 1 for axis in (0, 1)) == 20
