"""Sources of labelled images: MNIST, the bundled digits and files of several formats become data sets or are refused."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digits.data import formats, row_checks
from digits.data.datasets import BadData, Dataset, divide, join
from digits.data.formats import LIMIT_BYTES, Parts, Rows
from digits.errors import first_line
from digits.files import write_atomically
from digits.images import SIZE, Split

log = logging.getLogger("digits.data.sources")

# What `keras.datasets.mnist.load_data` downloads, and the digest it checks (keras/src/datasets/mnist.py).
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
KERAS_CACHE = Path("~/.keras/datasets/mnist.npz")
DOWNLOAD_TIMEOUT_SECONDS = 5.0  # for connecting and for each pause, not for the whole file


class SourceUnavailable(BadData):
    """A source that is fine but cannot be reached from this machine at present."""


def read(
    source: str,
    *,
    mnist: Path | None,
    cache: Path,
    seed: int = 0,
    keras_cache: Path = KERAS_CACHE,
    limit_bytes: int = LIMIT_BYTES,
) -> Dataset:
    """Read, check and split a source: `mnist`, `bundled` or a path.

    MNIST is read from the path `mnist`, Keras's cache or `cache`, and otherwise downloaded into `cache`. Raises BadData with
    the reason, and SourceUnavailable where MNIST cannot be downloaded.
    """
    if source == "mnist":
        return _mnist(mnist, keras_cache.expanduser(), cache / "mnist.npz", seed)
    if source == "bundled":
        return divide("bundled", _bundled(), seed=seed)
    path = Path(source).expanduser()
    if not path.exists():
        raise BadData(
            f"the source {source!r} does not exist; give `mnist`, `bundled`, or the path of {formats.names()}"
        )
    return _divide(path.name, formats.read(path, limit_bytes), seed, str(path.absolute()))


def read_rows(path: Path, limit_bytes: int = LIMIT_BYTES) -> Rows:
    """All labelled images of one file or folder, of any number and any digits; raises BadData.

    Only rows that hold no image at all are left out. `row_checks` finds the unusable ones among the others.
    """
    train, test, _ = formats.read(path, limit_bytes)
    if test is None:
        return train
    n = len(train.split)
    both = join(train.split, test.split)
    return Rows(
        both,
        lambda row: train.name(row) if row < n else test.name(row - n),
        {**train.unreadable, **test.unreadable},
    )


def _divide(source: str, parts: Parts, seed: int, origin: str) -> Dataset:
    train, test = (rows and _without_faults(source, rows) for rows in (parts.train, parts.test))
    assert train is not None
    return replace(divide(source, train, test, parts.writers, seed=seed), origin=origin)


def _without_faults(source: str, rows: Rows) -> Split:
    """The images of a part; raises BadData naming the first row that is unreadable or no image of a digit."""
    unusable = {rows.name(row): reason for row, reason in row_checks.image_faults(rows.split.images).items()}
    faults = [f"{name} {reason}" for name, reason in {**rows.unreadable, **unusable}.items()]
    if faults:
        total = f"; in all, {len(faults):,} rows are unusable" if len(faults) > 1 else ""
        raise BadData(f"{source}, {faults[0]}{total}")
    return rows.split


def existing_mnist(path: Path) -> Path:
    """The path in the setting DIGITS_MNIST; raises BadData when it does not exist."""
    if not path.exists():
        raise BadData(f"DIGITS_MNIST names {path}, which does not exist; correct it or unset it")
    return path


def _mnist(given: Path | None, keras_cache: Path, own_cache: Path, seed: int) -> Dataset:
    """MNIST from the first place that has it. A given file that is bad or missing is refused; a bad cache is skipped."""
    if given is not None:
        return _divide("mnist", formats.read(existing_mnist(given)), seed, str(given.absolute()))
    for path, origin in ((keras_cache, str(keras_cache)), (own_cache, MNIST_URL)):
        try:
            if path.exists():
                return _divide("mnist", formats.read(path), seed, origin)
        except BadData as error:
            log.warning("skipped %s: %s", path, error)
    try:
        _download(own_cache)
    except (httpx.HTTPError, SourceUnavailable) as error:
        tried = f"DIGITS_MNIST is not set, there is no valid {keras_cache}"
        reason = f"{tried}, and {MNIST_URL} could not be downloaded ({first_line(error)})"
        recommendation = "set DIGITS_MNIST to the path of an mnist.npz, or use `--data bundled`"
        raise SourceUnavailable(f"MNIST is unavailable: {reason}; {recommendation}") from error
    return _divide("mnist", formats.read(own_cache), seed, MNIST_URL)


def _download(target: Path) -> None:
    log.info("downloading MNIST from %s", MNIST_URL)
    body = httpx.get(MNIST_URL, timeout=DOWNLOAD_TIMEOUT_SECONDS, follow_redirects=True).raise_for_status().content
    digest = hashlib.sha256(body).hexdigest()
    if digest != MNIST_SHA256:
        raise SourceUnavailable(f"its {len(body)} bytes have the SHA-256 {digest}, expected {MNIST_SHA256}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, body)


def _bundled() -> Split:
    """The 1,797 handwritten digits of scikit-learn (8x8, 0 to 16) in the form of MNIST."""
    from sklearn.datasets import load_digits  # 3 s to import, and not installed where the service runs

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Split(np.stack([_enlarge(image) for image in small]), digits.target.astype(np.uint8))


def _enlarge(small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An 8x8 digit as MNIST has it: 20x20 pixels, placed in 28x28 with its centre of mass on pixel (14, 14).

    MNIST's images are centred by mass (http://yann.lecun.com/exdb/mnist/): its mean centre is (14.00, 14.01).
    """
    box = np.asarray(Image.fromarray(small).resize((20, 20), Image.Resampling.BICUBIC))
    centre = (np.average(np.arange(20), weights=box.sum(axis=axis)) for axis in (1, 0))
    top, left = (min(max(round(14 - float(middle)), 0), SIZE - 20) for middle in centre)
    image = np.zeros((SIZE, SIZE), np.uint8)
    image[top : top + 20, left : left + 20] = box
    return image
