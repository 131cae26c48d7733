"""The connected pieces of ink in a line."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from digits.pictures.ink import Ink
from digits.pictures.text_lines import DIGIT_HEIGHT, INK

Mask = NDArray[np.bool_]  # (height, width)

_MIN_AREA = 0.004 * DIGIT_HEIGHT**2  # pixels of a component; less is dust


@dataclass(frozen=True, eq=False)
class Component:
    """A connected piece of ink."""

    mask: Mask
    left: int  # pixels of the line, as `top`
    top: int

    @property
    def height(self) -> int:
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


def components(ink: Ink) -> list[Component]:
    """The components of a line from left to right."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((ink > INK).astype(np.uint8))
    middle = statistics[:, cv2.CC_STAT_LEFT] + statistics[:, cv2.CC_STAT_WIDTH] / 2
    found = []
    for label in np.argsort(middle, kind="stable").tolist():
        left, top, width, height, area = map(int, statistics[label])
        if label > 0 and area >= _MIN_AREA:
            found.append(Component(labels[top : top + height, left : left + width] == label, left, top))
    return found
