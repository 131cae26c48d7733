"""Removes ruled lines, squares and the boxes of forms from the ink of a picture, and leaves what was written over them."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.ink import Ink, window

Mask = NDArray[np.uint8]  # (height, width), 0 or 1

_INK = 64  # of 255: ink from which a pixel may belong to a rule, which is often fainter than the writing
_STEEPEST = 0.3  # pixels across per pixel along: perspective and a crooked sheet
_MIN_FRAME = 12  # pixels
_DARKER = 1.4  # ink over that of a rule from which it is a stroke
_MAX_FRAME_INK = 0.5  # of the pixels of a frame's rectangle


class _Part(NamedTuple):
    """A connected piece of ink that is a rule, or holds one together with the writing that crosses it."""

    left: int
    top: int
    width: int
    height: int
    is_frame: bool
    spans_across: bool  # the picture
    spans_down: bool

    def may_have_rules(self, is_upright: bool) -> bool:
        """Along a ruled line, strokes of the digits that stand on it are no upright rules."""
        return self.is_frame or (self.spans_down if is_upright else self.spans_across)


def without_rules(ink: Ink) -> Ink:
    """The ink of the writing alone."""
    mask = (ink > _INK).astype(np.uint8)
    rules, parts = _with_rules(mask)
    if not parts:
        return ink
    cleaned = ink.copy()
    for is_upright in (False, True):
        cleaned[_rule_pixels(ink, mask, rules, parts, is_upright)] = 0
    return cleaned


def _with_rules(mask: Mask) -> tuple[Mask, list[_Part]]:
    """The pieces that span the picture or are frames: their pixels and rectangles."""
    height, width = mask.shape
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask)
    pixels, parts = np.zeros_like(mask), []
    for label in range(1, count):
        left, top, w, h, area = map(int, statistics[label])
        place = np.s_[top : top + h, left : left + w]
        across = w >= 0.9 * width and (left <= 2 or left + w >= width - 2)
        down = h >= 0.9 * height and (top <= 2 or top + h >= height - 2)
        is_frame = not (across or down) and min(w, h) >= _MIN_FRAME and area < _MAX_FRAME_INK * w * h
        is_frame = is_frame and _is_frame((labels[place] == label).astype(np.uint8), mask[place])
        if across or down or is_frame:
            pixels[place] |= labels[place] == label
            parts.append(_Part(left, top, w, h, is_frame, across, down))
    return pixels, parts


def _is_frame(part: Mask, ink: Mask) -> bool:
    """Whether a piece has ink along all sides of a rectangle, and something is written inside."""
    height, width = part.shape
    inside = ink[round(0.15 * height) : round(0.85 * height), round(0.15 * width) : round(0.85 * width)]
    if inside.mean() <= 0.02:
        return False
    hull = cv2.convexHull(cv2.findNonZero(part))
    centre, size, angle = cv2.minAreaRect(hull)
    area = size[0] * size[1]
    if min(size) < _MIN_FRAME or cv2.contourArea(hull) < 0.85 * area or part.sum() > _MAX_FRAME_INK * area:
        return False
    outline = cv2.polylines(np.zeros_like(part), [cv2.boxPoints((centre, size, angle)).astype(np.int32)], True, 1)
    near = cv2.dilate(part, window(1 + 2 * max(2, round(0.06 * min(size)))))
    return bool(near[outline > 0].mean() > 0.9)


def _rule_pixels(ink: Ink, mask: Mask, rules: Mask, parts: list[_Part], is_upright: bool) -> NDArray[np.bool_]:
    """The pixels of level or upright rules, without those where a stroke crosses one."""
    lines = np.zeros_like(mask)
    for part in parts:
        if not part.may_have_rules(is_upright):
            continue
        length, across = (part.height, part.width) if is_upright else (part.width, part.height)
        # The boxes of a form share their frame: its upright sides are as high as one box.
        needed = 0.5 * length if not part.is_frame else 0.35 * across if across < length else 0.7 * length
        place = np.s_[part.top : part.top + part.height, part.left : part.left + part.width]
        _draw_lines(rules[place], max(needed, _MIN_FRAME), length, is_upright, lines[place])
    if not lines.any():
        return lines > 0
    runs = _runs_across(mask, is_upright)
    on_rule = (lines > 0) & (mask > 0)
    thickness, strength = (int(np.median(of[on_rule])) if on_rule.any() else 1 for of in (runs, ink))
    reach = window(thickness + 4, 1) if is_upright else window(1, thickness + 4)
    wide = cv2.dilate(lines, reach)
    # Where a stroke crosses the rule, the ink goes on across it, or is darker.
    return np.asarray((wide > 0) & (runs <= thickness + 3) & (ink <= _DARKER * strength))


def _draw_lines(rules: Mask, needed: float, length: int, is_upright: bool, into: Mask) -> None:
    """Draw the straight lines of at least so many pixels among these."""
    gap = max(4, int(0.04 * length))
    found = cv2.HoughLinesP(rules, 1, np.pi / 720, int(0.6 * needed), minLineLength=int(needed), maxLineGap=gap)
    lines = np.empty((0, 4), np.int32) if found is None else found.reshape(-1, 4)
    for x1, y1, x2, y2 in lines.astype(int).tolist():
        along, across = (abs(y2 - y1), abs(x2 - x1)) if is_upright else (abs(x2 - x1), abs(y2 - y1))
        if across <= _STEEPEST * along:
            cv2.line(into, (x1, y1), (x2, y2), 1)


def _runs_across(mask: Mask, is_upright: bool) -> NDArray[np.int64]:
    """For each pixel of ink, how many pixels of ink are connected across a level or upright rule; 0 for paper."""
    ink = (mask.T if is_upright else mask) > 0
    rows = np.arange(len(ink))[:, None]
    before = np.maximum.accumulate(np.where(ink, -1, rows), axis=0)
    behind = np.minimum.accumulate(np.where(ink, len(ink), rows)[::-1], axis=0)[::-1]
    runs = np.where(ink, behind - before - 1, 0)
    return runs.T if is_upright else runs
