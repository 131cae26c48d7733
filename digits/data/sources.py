"""The border of data: MNIST, the bundled digits and files of many kinds become data sets here, or are refused with a sentence."""

import gzip
import hashlib
import logging
import math
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from io import BufferedReader, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digits.data import rectification
from digits.data.datasets import BadData, Dataset, divide, first_line, join, reading
from digits.files import write_atomically
from digits.images import PIXELS, SIZE, Split

log = logging.getLogger("digits.data.sources")

# What `keras.datasets.mnist.load_data` fetches, and the digest it checks (keras/src/datasets/mnist.py).
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
KERAS_CACHE = Path("~/.keras/datasets/mnist.npz")
DOWNLOAD_TIMEOUT_SECONDS = 5.0  # for connecting and for each silence, not for the whole file
SOURCES = "`mnist`, `bundled`, or the path of an .npz, a .csv[.gz], a folder of IDX files or of pictures by digit"
MIN_INK = 64  # the brightest pixel of real data is 255; images scaled to 0..1 or 0..16 stay below this
NPZ_PARTS = (("x_train", "y_train"), ("x_test", "y_test"), ("images", "labels"))
IDX_PARTS = (("train-images", "train-labels"), ("t10k-images", "t10k-labels"))


class SourceUnavailable(BadData):
    """A source that cannot be had on this machine now, though nothing is wrong with it."""


# The border: a source becomes a data set or is refused.


def read(source: str, *, mnist: Path | None, cache: Path, seed: int = 0, keras_cache: Path = KERAS_CACHE) -> Dataset:
    """Reads, checks and splits a source: `mnist`, `bundled` or a path.

    `mnist` is looked for at the path `mnist`, in Keras's cache and in `cache`, and is then downloaded into `cache`.
    Raises BadData with the reason, and Unavailable where MNIST cannot be had.
    """
    if source == "mnist":
        return _mnist(mnist, keras_cache.expanduser(), cache / "mnist.npz", seed)
    if source == "bundled":
        return divide("bundled", _bundled(), None, seed)
    path = Path(source).expanduser()
    if not path.exists():
        raise BadData(f"the source {source!r} does not exist; give {SOURCES}")
    return _read_path(path, path.name, seed)


def read_labelled(path: Path) -> Split:
    """All labelled images of one file or folder, however few and whichever digits; raises BadData."""
    train, test = _parts(path)
    return train if test is None else join(train, test)


def _read_path(path: Path, source: str, seed: int) -> Dataset:
    train, test = _parts(path)
    return replace(divide(source, train, test, seed), checksum=_checksum(path))


def _parts(path: Path) -> tuple[Split, Split | None]:
    """The training and the test part of a file or folder, the second None where the source has but one part."""
    name = path.name.lower()
    if path.is_dir():
        with reading(path):
            return _read_idx_folder(path) if _idx_file(path, "train-images") else (_read_pictures(path), None)
    if name.endswith(".npz"):
        return _read_npz(path)
    if name.endswith((".csv", ".csv.gz")):
        table = _read_csv(path)
        return _labelled(path.name, "the pixels", table[:, 1:].reshape(-1, SIZE, SIZE), "the labels", table[:, 0]), None
    raise BadData(f"{path.name} is no known kind of data; give {SOURCES}")


def _labelled(file: str, images_name: str, images: Any, labels_name: str, labels: Any) -> Split:
    """The two arrays as a split, once type, shape, range and polarity are right; raises BadData naming the row."""
    for name, array in ((images_name, images), (labels_name, labels)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise BadData(f"{file}: {name} should be whole numbers (uint8), got {got}")
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        raise BadData(
            f"{file}: {images_name} should have the shape (n, {SIZE}, {SIZE}) with n >= 1, got {images.shape}"
        )
    if labels.shape != (len(images),):
        raise BadData(
            f"{file}: {labels_name} should have the shape ({len(images)},) of {images_name}, got {labels.shape}"
        )
    _check_range(file, images_name, images, 255)
    _check_range(file, labels_name, labels, 9)
    _check_ink(file, images_name, images)
    return Split(images.astype(np.uint8), labels.astype(np.uint8))


def _check_range(file: str, name: str, array: NDArray[Any], highest: int) -> None:
    if array.min() >= 0 and array.max() <= highest:
        return
    row, *place = np.argwhere((array < 0) | (array > highest))[0].tolist()
    where = f", pixel {tuple(place)}" if place else ""
    value = array[(row, *place)]
    raise BadData(f"{file}: row {row} of {name} (counted from 0){where} is {value}, expected 0 to {highest}")


def _check_ink(file: str, name: str, images: NDArray[Any]) -> None:
    """Refuses what is in range and yet not 0 = paper, 255 = ink: other scales, and dark ink on light paper."""
    if images.max() < MIN_INK:
        raise BadData(f"{file}: the largest value of {name} is {images.max()}, expected ink up to 255; scale it first")
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    if np.median(border) > 127:
        paper = int(np.median(border))
        raise BadData(
            f"{file}: the border of {name} is mostly {paper}, expected paper to be 0; subtract it from 255 first"
        )


# MNIST and the bundled digits


def existing_mnist(given: Path) -> Path:
    """The path that the setting DIGITS_MNIST names; raises BadData when nothing is there."""
    if not given.exists():
        raise BadData(f"DIGITS_MNIST names {given}, which does not exist; correct it or unset it")
    return given


def _mnist(given: Path | None, keras_cache: Path, own_cache: Path, seed: int) -> Dataset:
    """MNIST from the first place that has it. A given file that is bad or missing is refused; a bad cache is passed over."""
    if given is not None:
        return _read_path(existing_mnist(given), "mnist", seed)
    tried = ["DIGITS_MNIST is not set"]
    for path in (keras_cache, own_cache):
        try:
            if path.exists():
                return _read_path(path, "mnist", seed)
            tried.append(f"there is no {path}")
        except BadData as error:
            tried.append(f"{path} was passed over ({error})")
    try:
        _download(own_cache)
    except (httpx.HTTPError, SourceUnavailable) as error:
        tried.append(f"{MNIST_URL} could not be fetched ({first_line(error)})")
        recommendations = "set DIGITS_MNIST to the path of an mnist.npz, or use `--data bundled`"
        raise SourceUnavailable(f"MNIST cannot be had here: {', '.join(tried)}; {recommendations}") from error
    return _read_path(own_cache, "mnist", seed)


def _download(target: Path) -> None:
    """Fetches the file that Keras fetches, checks its digest and puts it in place in one step."""
    log.info("fetching MNIST from %s", MNIST_URL)
    body = httpx.get(MNIST_URL, timeout=DOWNLOAD_TIMEOUT_SECONDS, follow_redirects=True).raise_for_status().content
    digest = hashlib.sha256(body).hexdigest()
    if digest != MNIST_SHA256:
        raise SourceUnavailable(f"what came has {len(body)} bytes and the SHA-256 {digest}, expected {MNIST_SHA256}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, body)


def _bundled() -> Split:
    """The 1,797 handwritten digits of scikit-learn (8x8, 0 to 16), as MNIST would hold them."""
    from sklearn.datasets import load_digits  # 3 s to import, and absent where the service runs

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Split(np.stack([_enlarge(image) for image in small]), digits.target.astype(np.uint8))


def _enlarge(small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An 8x8 digit as MNIST has it: 20x20 pixels, put into 28x28 with its centre of mass on pixel (14, 14).

    MNIST's images are centred by mass (http://yann.lecun.com/exdb/mnist/): its mean centre is (14.00, 14.01).
    """
    box = np.asarray(Image.fromarray(small).resize((20, 20), Image.Resampling.BICUBIC))
    centre = (np.average(np.arange(20), weights=box.sum(axis=axis)) for axis in (1, 0))
    top, left = (min(max(round(14 - float(middle)), 0), SIZE - 20) for middle in centre)
    image = np.zeros((SIZE, SIZE), np.uint8)
    image[top : top + 20, left : left + 20] = box
    return image


# Readers, one per kind of file


def _checksum(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and digests of its files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {_checksum(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_npz(path: Path) -> tuple[Split, Split | None]:
    """Keras's names (`x_train`, `y_train` and, if there is a test part, `x_test`, `y_test`) or `images`, `labels`."""
    with reading(path):
        if not zipfile.is_zipfile(path):
            raise BadData(
                f"{path.name} is no complete .npz archive of {path.stat().st_size} bytes; write it with numpy.savez"
            )
        # opened here, because numpy leaves a path that it cannot read open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for pair in NPZ_PARTS for name in pair if name in archive}
            names = archive.files
    halves = [name for pair in NPZ_PARTS for name in pair if len(arrays.keys() & pair) == 1 and name not in arrays]
    if halves:
        raise BadData(f"{path.name} has no array {halves[0]!r}, it holds {names}")
    train, test, single = (
        _labelled(path.name, x, arrays[x], y, arrays[y]) if x in arrays else None for x, y in NPZ_PARTS
    )
    if train is None and single is None:
        raise BadData(
            f"{path.name} holds the arrays {names}, expected x_train, y_train, x_test, y_test or images, labels"
        )
    return (train, test) if train is not None else (single, None)  # type: ignore[return-value]  # one of them is there


def _read_idx_folder(folder: Path) -> tuple[Split, Split | None]:
    """The files of MNIST's own format, plain or gzipped: train-images, train-labels, t10k-images, t10k-labels."""
    train, test = (_read_idx_pair(folder, *names) for names in IDX_PARTS)
    if train is None:
        raise BadData(f"{folder.name} has no train-images-idx3-ubyte")
    return train, test


def _read_idx_pair(folder: Path, images_name: str, labels_name: str) -> Split | None:
    images, labels = _idx_file(folder, images_name), _idx_file(folder, labels_name)
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing = f"{images_name}-idx3-ubyte" if images is None else f"{labels_name}-idx1-ubyte"
        raise BadData(f"{folder.name} has no {missing}, plain or .gz")
    return _labelled(folder.name, images.name, _read_idx(images, 3), labels.name, _read_idx(labels, 1))


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file of that name; some copies write a dot where the original has a dash (`train-images.idx3-ubyte`)."""
    found = [path for path in folder.iterdir() if re.fullmatch(rf"{name}[-.]idx[13]-ubyte(\.gz)?", path.name)]
    return min(found, default=None)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Magic `00 00 08 d`, d big-endian sizes, then the bytes (http://yann.lecun.com/exdb/mnist/)."""
    with reading(path), _open(path) as file:
        body = file.read()
    start = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if body[:4] != magic or len(body) < start:
        raise BadData(
            f"{path.name} begins with {body[:4].hex() or 'nothing'}, expected the IDX magic number {magic.hex()}"
        )
    shape = np.frombuffer(body, ">u4", dimensions, 4).tolist()
    row_bytes = math.prod(shape[1:])
    if len(body) - start != row_bytes * shape[0]:
        rows = (len(body) - start) // max(row_bytes, 1)
        raise BadData(
            f"{path.name} promises {shape[0]} rows of {row_bytes} bytes each, but its {len(body)} bytes hold {rows}"
        )
    return np.frombuffer(body, np.uint8, offset=start).reshape(shape)


def _read_pictures(folder: Path) -> Split:
    """Picture files in sub-folders named by their digit; hidden files are passed over."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    digits = [path for path in visible if path.is_dir() and re.fullmatch("[0-9]", path.name)]
    strangers = [path.name for path in visible if path not in digits]
    if strangers or not digits:
        raise BadData(
            f"{folder.name} holds {(strangers or ['nothing'])[0]!r}, "
            "expected sub-folders 0 to 9 with pictures, or the IDX files of MNIST"
        )
    files = [path for digit in digits for path in sorted(digit.iterdir()) if not path.name.startswith(".")]
    if not files:
        raise BadData(f"{folder.name} holds no picture in its sub-folders")
    images = np.stack([_read_picture(path) for path in files])
    return _labelled(
        folder.name, "the pictures", images, "the folders", np.array([int(path.parent.name) for path in files])
    )


def _read_picture(path: Path) -> NDArray[np.uint8]:
    try:
        return rectification.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{Path(*path.parts[-3:])} is not a readable picture of a digit: {first_line(error)}") from error


# Kaggle's CSV


def _read_csv(path: Path) -> NDArray[np.uint8]:
    """The table of a Kaggle file, shape (n, 785) with the label first; the header line may be missing.

    Every value must be a whole number 0 to 255, a label 0 to 9. Raises BadData naming row (from 1), line and value.
    """
    columns = PIXELS + 1
    try:
        with _lines(path) as lines:
            if not (first := _first_row(path, lines, columns)):
                raise BadData(f"{path.name} has no rows, expected a header and lines of {columns} numbers")
            table = np.loadtxt(chain([first], lines), np.uint8, delimiter=",", comments=None, ndmin=2)
    except BadData:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _bad_row(path, columns, first_line(error)) from error
    if table.shape[1] != columns or table[:, 0].max() > 9:
        raise _bad_row(path, columns, f"its shape is {table.shape}")
    return table


def _lines(path: Path) -> TextIOWrapper:
    return TextIOWrapper(_open(path), encoding="utf-8-sig", errors="replace")


def _first_row(path: Path, lines: Iterable[str], columns: int) -> str:
    """The first line that is no header, blank or "" at the end; refuses a header that promises other columns."""
    lines = (line for line in lines if line.strip())
    line = next(iter(lines), "")
    return next(iter(lines), "") if is_header(path.name, line, columns) else line


def is_header(file: str, line: str, columns: int) -> bool:
    """Whether a line of Kaggle's CSV names its columns instead of holding numbers; BadData where it names other columns."""
    names = [field.strip(' "\r\n').lower() for field in line.split(",")]
    if not line or names[0].isdecimal():
        return False
    expected = "label" if columns > PIXELS else "pixel0"
    if len(names) != columns or (names[0] == "label") != (expected == "label"):
        start = f"begins with {names[0][:40]!r} and has {len(names)} columns"
        raise BadData(f"{file} {start}, expected {expected!r} and {columns}")
    return True


def _bad_row(path: Path, columns: int, reason: str) -> BadData:
    """The refusal of the first row that is not `columns` numbers in range; numpy counts rows now from 0, now from 1."""
    row = 0
    try:
        with _lines(path) as lines:
            for number, line in enumerate(lines, start=1):
                fields = [field.strip() for field in line.split(",")]
                if fields == [""] or (number == 1 and not fields[0].isdecimal()):  # blank, or the header
                    continue
                row += 1
                if fault := row_fault(fields, columns):
                    return BadData(f"{path.name}, row {row} (line {number}) {fault}")
    except (OSError, EOFError, zlib.error) as error:
        reason = first_line(error)
    return BadData(f"{path.name} cannot be read past row {row}: {reason}")


def row_fault(fields: list[str], columns: int) -> str | None:
    """What is wrong with the values of one row of Kaggle's CSV; None where all is right."""
    if len(fields) != columns:
        return f"has {len(fields)} values, expected {columns}; it begins {','.join(fields)[:40]!r}"
    names = [f"pixel{pixel}" for pixel in range(PIXELS)]
    for name, field in zip(["label"] * (columns > PIXELS) + names, fields, strict=True):
        highest = 9 if name == "label" else 255
        if not re.fullmatch("[+]?0*[0-9]{1,3}", field) or int(field) > highest:
            return f"has the {name} {field[:40]!r}, expected a whole number 0 to {highest}"
    return None
