"""MNIST's digits redrawn large, dark on light, off-centre, with thin and thick pens, for `bench.handwriting`.

Each digit is thinned to its skeleton and drawn again with a round pen, unlike any training image.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Side of the picture in pixels.
PAPER = 400
# 20 pixels of a digit become 160.
ENLARGED = 8
# Diameters in pixels; MNIST's own pen would have about 20.
PENS = (8, 14, 20, 28)


def draw(image: NDArray[np.uint8], pen: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A drawing (400, 400) of the digit (28, 28) with a round pen, somewhere on light paper."""
    large = ndimage.gaussian_filter(ndimage.zoom(image.astype(np.float32), ENLARGED, order=1), ENLARGED / 2)
    distance = ndimage.distance_transform_edt(~skeleton(large > 110))
    # Anti-aliased over one pixel.
    ink = np.clip(pen / 2 + 0.5 - distance, 0, 1)
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    paper, colour = random.uniform(215, 255), random.uniform(0, 70)
    drawing = np.full((PAPER, PAPER), paper)
    top, left = (int(random.integers(5, PAPER - side - 5)) for side in ink.shape)
    drawing[top : top + ink.shape[0], left : left + ink.shape[1]] += ink * (colour - paper)
    return drawing.round().astype(np.uint8)


def skeleton(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Strokes one pixel wide (Zhang and Suen 1984, "A fast parallel algorithm for thinning digital patterns")."""
    ink = np.pad(ink, 1)
    changed = True
    while changed:
        changed = False
        for corners in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            # the neighbours of each pixel, clockwise from the one above
            around = [np.roll(ink, shift, (0, 1)) for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))]  # fmt: skip
            count = np.sum(around, axis=0)
            turns = np.sum([~one & other for one, other in zip(around, [*around[1:], around[0]], strict=True)], axis=0)
            removed = ink & (count >= 2) & (count <= 6) & (turns == 1)
            for corner in corners:
                removed &= ~np.logical_and.reduce([around[place] for place in corner])
            ink = ink & ~removed
            changed |= bool(removed.any())
    return ink[1:-1, 1:-1]
