"""Random affine and elastic augmentation of a batch of digits, after Simard, Steinkraus and Platt (ICDAR 2003)."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from digits.data.perturbations import neighbourhood_extreme, sample_bilinear
from digits.images import SIZE, Images

CENTRE = (SIZE - 1) / 2


class Augmentation(BaseModel):
    """Ranges of the random change of every training image in every epoch; each is drawn uniformly from ± its value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotation_radians: float = Field(0.2, ge=0, description="Rotation.")
    scale: float = Field(0.15, ge=0, lt=1, description="Relative size, for width and height separately.")
    shear: float = Field(0.2, ge=0, description="Slant: pixels to the side per pixel of height.")
    shift_pixels: float = Field(1.5, ge=0, description="Shift, for both directions separately.")
    elastic_pixels: float = Field(36.0, ge=0, description="Elastic strength (alpha of Simard et al. 2003).")
    elastic_sigma_pixels: float = Field(4.0, gt=0, description="Smoothness of the elastic field (their sigma).")
    thickness: float = Field(0.4, ge=0, le=1, description="Fraction of a one-pixel dilation or erosion of the strokes.")
    final_share: float = Field(1.0, ge=0, le=1, description="Fraction of the ranges left, linearly, in the last epoch.")


def ranges(augmentation: Augmentation, progress: float) -> Augmentation:
    """The ranges at a moment of the training, from 0 at its start to 1 at its end."""
    share = 1 - progress * (1 - augmentation.final_share)
    scaled = augmentation.model_dump(exclude={"elastic_sigma_pixels", "final_share"})
    return augmentation.model_copy(update={name: share * value for name, value in scaled.items()})


def augment(images: Images, augmentation: Augmentation, random: np.random.Generator, chunk: int = 2000) -> Images:
    """Every image moved, turned, bent and thickened at random; same shape, paper outside the frame stays paper."""
    parts = [_augment(images[start : start + chunk], augmentation, random) for start in range(0, len(images), chunk)]
    return np.concatenate(parts)


def _augment(images: Images, augmentation: Augmentation, random: np.random.Generator) -> Images:
    rows, columns = _affine_coordinates(len(images), augmentation, random)
    if augmentation.elastic_pixels:
        rows += _elastic_field(len(images), augmentation, random)
        columns += _elastic_field(len(images), augmentation, random)
    return sample_bilinear(_thicken(images, augmentation.thickness, random), rows, columns)


def _affine_coordinates(
    n: int, augmentation: Augmentation, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Row and column of the source pixel for every target pixel, each of shape (n, 28, 28)."""

    def draw(limit: float) -> NDArray[np.float32]:
        return random.uniform(-limit, limit, (n, 1, 1)).astype(np.float32)

    angle, shear = draw(augmentation.rotation_radians), draw(augmentation.shear)
    height, width = 1 + draw(augmentation.scale), 1 + draw(augmentation.scale)
    row, column = (axis.astype(np.float32)[None] - CENTRE for axis in np.mgrid[:SIZE, :SIZE])
    row, column = row / height, (column + shear * row) / width
    rows = np.cos(angle) * row - np.sin(angle) * column + CENTRE + draw(augmentation.shift_pixels)
    columns = np.sin(angle) * row + np.cos(angle) * column + CENTRE + draw(augmentation.shift_pixels)
    return rows, columns


def _elastic_field(n: int, augmentation: Augmentation, random: np.random.Generator) -> NDArray[np.float32]:
    """Displacements in pixels, shape (n, 28, 28): uniform noise, smoothed by a Gaussian, times the strength."""
    noise = random.random((n, SIZE, SIZE), dtype=np.float32) * 2 - 1
    offsets = np.arange(SIZE)[:, None] - np.arange(SIZE)[None, :]
    smooth = np.exp(-0.5 * (offsets / augmentation.elastic_sigma_pixels) ** 2)
    smooth = (smooth / smooth.sum(axis=1).max()).astype(np.float32)  # noise outside the frame is 0
    return np.float32(augmentation.elastic_pixels) * (smooth @ noise @ smooth.T)


def _thicken(images: Images, thickness: float, random: np.random.Generator) -> Images:
    """Strokes up to `thickness` of a pixel thicker or thinner on each side: a blend with the 3 × 3 maximum or minimum."""
    if not thickness:
        return images
    amount = random.uniform(-thickness, thickness, len(images)).astype(np.float32)
    thicker = amount > 0
    extreme = np.empty_like(images)
    extreme[thicker] = neighbourhood_extreme(images[thicker], np.maximum)
    extreme[~thicker] = neighbourhood_extreme(images[~thicker], np.minimum)
    share = np.abs(amount)[:, None, None]
    return np.rint(images + share * (extreme.astype(np.float32) - images)).astype(np.uint8)
