"""Reference images as the service would see them if they were sent as picture files: through the same decoder."""

import hashlib
import inspect
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digits.files import replacing
from digits.images import Images
from digits.pictures import rectification
from digits.reference import Reference
from monitoring import image_statistics, samples
from monitoring.samples import PredictWithRejection, Sample

MAX_DECODED = 1_000  # images in each form; decoding takes 10 to 40 ms each, once for every version
MAX_FILES = 30  # those used last are kept: 0.8 MB each, three for a version

# What clients make of a digit: the file that MNIST's pixels are, ink on paper, and a drawing or scan of more pixels.
FORMS: dict[str, Callable[[NDArray[np.uint8]], Image.Image]] = {
    "as it is": Image.fromarray,
    "dark ink": lambda image: Image.fromarray(255 - image),
    "enlarged": lambda image: Image.fromarray(255 - image).resize((112, 112), Image.Resampling.BICUBIC),
}


def by_route(
    reference: Reference, window: Sample, predict: PredictWithRejection, folder: Path
) -> tuple[Sample, Sample]:
    """The reference as pixels, and as pictures that were decoded like those of the window; empty where it has none."""
    pixels = samples.answered(reference.images, predict)
    if not window.is_picture.any():
        return pixels, pixels.take(np.zeros(0, np.int64))
    decoded = nearest(reference.images, window.images[window.is_picture], folder)
    return pixels, samples.answered(decoded, predict, is_picture=True)


def nearest(images: Images, window: Images, folder: Path) -> Images:
    """Some of the images, sent in the form whose decoded images look most like the window's pictures.

    The log holds only the decoded images, so the form is not known. Each form is decoded once and kept in the folder, until
    other versions have used it more recently. Both are random samples: the first half of MNIST's test images is of other
    writers than the second.
    """
    found = [_decoded(_some(images, MAX_DECODED), form, folder) for form in FORMS]
    target = image_statistics.measure(_some(window, 2 * MAX_DECODED))
    tables = [image_statistics.measure(one) for one in found]
    squares = [sum(image_statistics.distance(table[name], target[name]) ** 2 for name in table) for table in tables]
    return found[int(np.argmin(squares))]


def _some(images: Images, count: int) -> Images:
    """A random sample, the same one every time."""
    return images[np.random.default_rng(0).permutation(len(images))[:count]]


def decode(images: Images, form: str) -> Images:
    """The images after this form and the service's decoder, without those that it refuses."""
    kept = []
    for image in images:
        buffer = io.BytesIO()
        FORMS[form](image).save(buffer, "PNG")
        try:
            kept.append(rectification.decode(buffer.getvalue()))
        except ValueError:
            continue
    return np.stack(kept) if kept else images[:0]


def _decoded(images: Images, form: str, folder: Path) -> Images:
    """Read from the folder, or decoded and stored there; other images or another decoder have another name."""
    key = hashlib.blake2b(images.tobytes() + inspect.getsource(rectification).encode(), digest_size=8).hexdigest()
    path = folder / f"{key}-{form.replace(' ', '-')}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, decode(images, form))
    found: Images = np.load(path, allow_pickle=False)
    path.touch()
    for unused in sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)[:-MAX_FILES]:
        unused.unlink(missing_ok=True)
    return found
