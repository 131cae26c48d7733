"""The reference sample: held-out images and a version's predictions for them, stored with the version to measure drift against."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digits.images import Split


@dataclass(frozen=True, eq=False)
class Reference(Split):
    """Random held-out images with their labels, and the version's predictions for them."""

    probabilities: NDArray[np.float32]  # (n, 10)

    def sample(self, max_images: int, seed: int) -> "Reference":
        """A random sample of its images."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:max_images])
        return Reference(self.images[chosen], self.labels[chosen], self.probabilities[chosen])

    def to_bytes(self) -> bytes:
        """A compressed npz without pickles."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=self.images, labels=self.labels, probabilities=self.probabilities)
        return buffer.getvalue()


def from_bytes(content: bytes) -> Reference:
    """The inverse of `to_bytes`; raises ValueError for anything else."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            reference = Reference(arrays["images"], arrays["labels"], arrays["probabilities"])
    except (KeyError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"expected an npz with images, labels and probabilities: {error}") from error
    if reference.probabilities.shape != (len(reference), 10):
        raise ValueError(f"expected {len(reference)} rows of probabilities, got {reference.probabilities.shape}")
    return reference
