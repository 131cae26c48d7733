"""Sources of labelled images: MNIST, the bundled digits and files of several formats become data sets or are refused.

A new format is one function from a path to its training and test part, and its entry in `FORMATS`.
"""

import gzip
import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digits.data import kaggle_csv, rectification
from digits.data.datasets import BadData, Dataset, divide, join, reading
from digits.errors import first_line
from digits.files import write_atomically
from digits.images import SIZE, Split

log = logging.getLogger("digits.data.sources")

# What `keras.datasets.mnist.load_data` downloads, and the digest it checks (keras/src/datasets/mnist.py).
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
KERAS_CACHE = Path("~/.keras/datasets/mnist.npz")
DOWNLOAD_TIMEOUT_SECONDS = 5.0  # for connecting and for each pause, not for the whole file
MIN_INK = 64  # the brightest pixel of real data is 255; images scaled to 0..1 or 0..16 stay below this
NPZ_PARTS = (("x_train", "y_train"), ("x_test", "y_test"), ("images", "labels"))
IDX_PARTS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)

Parts = tuple[Split, Split | None]  # training and test images; no test images where the source has one part only


class SourceUnavailable(BadData):
    """A source that is fine but cannot be reached from this machine at present."""


def read(source: str, *, mnist: Path | None, cache: Path, seed: int = 0, keras_cache: Path = KERAS_CACHE) -> Dataset:
    """Read, check and split a source: `mnist`, `bundled` or a path.

    MNIST is read from the path `mnist`, Keras's cache or `cache`, and otherwise downloaded into `cache`. Raises BadData with
    the reason, and SourceUnavailable where MNIST cannot be downloaded.
    """
    if source == "mnist":
        return _mnist(mnist, keras_cache.expanduser(), cache / "mnist.npz", seed)
    if source == "bundled":
        return divide("bundled", _bundled(), None, seed)
    path = Path(source).expanduser()
    if not path.exists():
        raise BadData(f"the source {source!r} does not exist; give {_known_sources()}")
    return divide(path.name, *_read_parts(path), seed)


def read_labelled(path: Path) -> Split:
    """All labelled images of one file or folder, of any number and any digits; raises BadData."""
    train, test = _read_parts(path)
    return train if test is None else join(train, test)


def _read_parts(path: Path) -> Parts:
    with reading(path):
        for known in FORMATS:
            if known.matches(path):
                return known.read(path)
    raise BadData(f"{path.name} is in no known format; give {_known_sources()}")


def _known_sources() -> str:
    return f"`mnist`, `bundled`, or the path of {', '.join(known.name for known in FORMATS)}"


def _checked(file: str, images_name: str, images: Any, labels_name: str, labels: Any) -> Split:
    """The two arrays as a split, once type, shape, range and polarity are right; raises BadData naming the row."""
    for name, array in ((images_name, images), (labels_name, labels)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise BadData(f"{file}: {name} should be whole numbers (uint8), got {got}")
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        shape = f"(n, {SIZE}, {SIZE}) with n >= 1"
        raise BadData(f"{file}: {images_name} should have the shape {shape}, got {images.shape}")
    if labels.shape != (len(images),):
        shape = f"({len(images)},) of {images_name}"
        raise BadData(f"{file}: {labels_name} should have the shape {shape}, got {labels.shape}")
    _check_range(file, images_name, images, 255)
    _check_range(file, labels_name, labels, 9)
    _check_ink(file, images_name, images)
    return Split(images.astype(np.uint8), labels.astype(np.uint8))


def _check_range(file: str, name: str, array: NDArray[Any], highest: int) -> None:
    if array.min() >= 0 and array.max() <= highest:
        return
    row, *place = np.argwhere((array < 0) | (array > highest))[0].tolist()
    pixel = f", pixel {tuple(place)}" if place else ""
    value = array[(row, *place)]
    raise BadData(f"{file}: row {row} of {name} (counted from 0){pixel} is {value}, expected 0 to {highest}")


def _check_ink(file: str, name: str, images: NDArray[Any]) -> None:
    """Refuse values in range that are not 0 = paper, 255 = ink: other scales, and dark ink on light paper."""
    if images.max() < MIN_INK:
        raise BadData(f"{file}: the largest value of {name} is {images.max()}, expected ink up to 255; scale it first")
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    if (paper := int(np.median(border))) > 127:
        expected = "expected paper to be 0; subtract it from 255 first"
        raise BadData(f"{file}: the border of {name} is mostly {paper}, {expected}")


# MNIST and the bundled digits


def existing_mnist(path: Path) -> Path:
    """The path in the setting DIGITS_MNIST; raises BadData when it does not exist."""
    if not path.exists():
        raise BadData(f"DIGITS_MNIST names {path}, which does not exist; correct it or unset it")
    return path


def _mnist(given: Path | None, keras_cache: Path, own_cache: Path, seed: int) -> Dataset:
    """MNIST from the first place that has it. A given file that is bad or missing is refused; a bad cache is skipped."""
    if given is not None:
        return divide("mnist", *_read_parts(existing_mnist(given)), seed)
    for path in (keras_cache, own_cache):
        try:
            if path.exists():
                return divide("mnist", *_read_parts(path), seed)
        except BadData as error:
            log.warning("skipped %s: %s", path, error)
    try:
        _download(own_cache)
    except (httpx.HTTPError, SourceUnavailable) as error:
        tried = f"DIGITS_MNIST is not set, there is no valid {keras_cache}"
        reason = f"{tried}, and {MNIST_URL} could not be downloaded ({first_line(error)})"
        recommendation = "set DIGITS_MNIST to the path of an mnist.npz, or use `--data bundled`"
        raise SourceUnavailable(f"MNIST is unavailable: {reason}; {recommendation}") from error
    return divide("mnist", *_read_parts(own_cache), seed)


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


# Formats


def _read_npz(path: Path) -> Parts:
    """Keras's names (`x_train`, `y_train` and, if there is a test part, `x_test`, `y_test`) or `images`, `labels`."""
    # Opened here, because NumPy does not close a path that it cannot read.
    with path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:
        pairs = [(x, y) for x, y in NPZ_PARTS if x in archive or y in archive]
        splits = {x: _checked(path.name, x, archive[x], y, archive[y]) for x, y in pairs}
    if train := splits.get("x_train") or splits.get("images"):
        return train, splits.get("x_test")
    expected = "expected x_train, y_train, x_test, y_test or images, labels"
    raise BadData(f"{path.name} holds the arrays {archive.files}, {expected}")


def _read_csv(path: Path) -> Parts:
    """Kaggle's `train.csv`, plain or gzipped; raises BadData naming row, line and value of the first fault."""
    tables: list[NDArray[np.uint8]] = []
    lines = 0
    for content in kaggle_csv.chunks(path, kaggle_csv.LABELLED):
        table, _, faults = kaggle_csv.read(content, kaggle_csv.LABELLED)
        if faults:
            position = min(faults)
            row, line = sum(map(len, tables)) + position + 1, lines + kaggle_csv.line_number(content, position)
            raise BadData(f"{path.name}, row {row} (line {line}) {faults[position]}")
        tables.append(table)
        lines += content.count(b"\n")
    if not any(map(len, tables)):
        raise BadData(f"{path.name} has no rows, expected a header and lines of {kaggle_csv.LABELLED} numbers")
    table = np.concatenate(tables)
    return _checked(path.name, "the pixels", table[:, 1:].reshape(-1, SIZE, SIZE), "the labels", table[:, 0]), None


def _read_idx_folder(folder: Path) -> Parts:
    """The files of MNIST's own format, plain or gzipped: train-images, train-labels, t10k-images, t10k-labels."""
    files = _idx_files(folder)
    train, test = IDX_PARTS
    has_test = any(name in files for name in test)
    return _read_idx_split(folder, files, train), _read_idx_split(folder, files, test) if has_test else None


def _idx_files(folder: Path) -> dict[str, Path]:
    """By their names; some copies have a dot where the original has a dash (`train-images.idx3-ubyte`)."""
    files = sorted(folder.iterdir(), reverse=True)
    named = {file.name.removesuffix(".gz").replace(".idx", "-idx"): file for file in files}
    return {name: named[name] for part in IDX_PARTS for name in part if name in named}


def _read_idx_split(folder: Path, files: dict[str, Path], names: tuple[str, str]) -> Split:
    if missing := [name for name in names if name not in files]:
        raise BadData(f"{folder.name} has no {missing[0]}, plain or .gz")
    images, labels = (files[name] for name in names)
    return _checked(folder.name, images.name, _read_idx(images, 3), labels.name, _read_idx(labels, 1))


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Magic `00 00 08 d`, d big-endian sizes, then the bytes (http://yann.lecun.com/exdb/mnist/)."""
    magic = bytes([0, 0, 8, dimensions])
    with reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        body = file.read()
        if body[:4] != magic:
            begin = body[:4].hex() or "nothing"
            raise BadData(f"{path.name} begins with {begin}, expected the IDX magic number {magic.hex()}")
        shape = np.frombuffer(body, ">u4", dimensions, offset=4).tolist()
        return np.frombuffer(body, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _read_pictures(folder: Path) -> Parts:
    """Picture files in sub-folders named by their digit; hidden files are ignored."""
    entries = _visible(folder)
    unexpected = [path.name for path in entries if not (path.is_dir() and re.fullmatch("[0-9]", path.name))]
    if unexpected or not entries:
        expected = "expected sub-folders 0 to 9 with pictures, or the IDX files of MNIST"
        raise BadData(f"{folder.name} holds {next(iter(unexpected), 'nothing')!r}, {expected}")
    files = [path for digit in entries for path in _visible(digit)]
    images = np.stack([_read_picture(path) for path in files])
    labels = np.array([int(path.parent.name) for path in files])
    return _checked(folder.name, "the pictures", images, "the folders", labels), None


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read_picture(path: Path) -> NDArray[np.uint8]:
    try:
        return rectification.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{Path(*path.parts[-3:])} is not a readable picture of a digit: {first_line(error)}") from error


class Format(NamedTuple):
    """A format of files or folders."""

    name: str  # in the message that lists what can be read
    matches: Callable[[Path], bool]
    read: Callable[[Path], Parts]


def _ends_with(*endings: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.name.lower().endswith(endings)


# The first format that matches reads the path.
FORMATS = (
    Format("an .npz", _ends_with(".npz"), _read_npz),
    Format("a .csv[.gz]", _ends_with(".csv", ".csv.gz"), _read_csv),
    Format("a folder of IDX files", lambda path: path.is_dir() and bool(_idx_files(path)), _read_idx_folder),
    Format("a folder of pictures by digit", Path.is_dir, _read_pictures),
)
