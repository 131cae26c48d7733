"""Formats of files and folders with labelled images.

A new format is one function from a path to its training and test part, and its entry in `FORMATS`.
"""

import gzip
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from digits.data import kaggle_csv
from digits.data.datasets import BadData, reading
from digits.errors import first_line
from digits.images import SIZE, Split
from digits.pictures import rectification

LIMIT_BYTES = 2_000_000_000  # decompressed; Kaggle's 42,000 rows are 77 million bytes of text
# Of a CSV: the reasons take 400 bytes each, and a file of the limit may have a billion lines.
MAX_UNREADABLE_ROWS = 100_000
NPZ_PARTS = (("x_train", "y_train"), ("x_test", "y_test"), ("images", "labels"))
IDX_PARTS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


class Rows(NamedTuple):
    """The readable rows of a part, and the others."""

    split: Split
    name: Callable[[int], str]  # of a readable row, as messages call it
    unreadable: Mapping[str, str] = MappingProxyType({})  # the reason by the name of each other row


class Parts(NamedTuple):
    """Training and test rows; no test rows where the source has one part only."""

    train: Rows
    test: Rows | None = None
    writers: NDArray[Any] | None = None  # who wrote each training image, (n,), where the source names them


class Format(NamedTuple):
    """A format of files or folders."""

    name: str  # in the message that lists what can be read
    matches: Callable[[Path], bool]
    read: Callable[[Path], Parts]


def read(path: Path, limit_bytes: int = LIMIT_BYTES) -> Parts:
    """The rows of a file or folder in one of these formats; raises BadData."""
    with reading(path):
        for known in FORMATS:
            if known.matches(path):
                _check_size(path, limit_bytes)
                return known.read(path)
    raise BadData(f"{path.name} is in no known format; give `mnist`, `bundled`, or the path of {names()}")


def names() -> str:
    """The formats, as messages list them."""
    return ", ".join(known.name for known in FORMATS)


def _check_size(path: Path, limit_bytes: int) -> None:
    """Raise BadData where a file or folder holds more than `limit_bytes` decompressed; of .gz, 1 MB at a time is in memory."""
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        for size in _sizes(file):
            total += size
            if total > limit_bytes:
                recommendation = "divide it into several, or raise DIGITS_SOURCE_LIMIT_BYTES"
                raise BadData(f"{path.name} has more than {limit_bytes:,} bytes of content; {recommendation}")


def _sizes(file: Path) -> Iterator[int]:
    """The size in bytes of each piece of a file's content."""
    if file.suffix.lower() == ".gz":
        with reading(file), gzip.open(file) as content:
            while piece := content.read(1 << 20):
                yield len(piece)
    elif file.suffix.lower() == ".npz":
        # NumPy reads no more of a member than this.
        with zipfile.ZipFile(file) as archive:
            yield from (member.file_size for member in archive.infolist())
    elif file.is_file():
        yield file.stat().st_size


def _read_npz(path: Path) -> Parts:
    """Keras's names (`x_train`, `y_train` and, if there is a test part, `x_test`, `y_test`) or `images`, `labels`.

    An array `writers` (n,) may name who wrote each image.
    """
    # Opened here, because NumPy does not close a path that it cannot read.
    with path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:
        pairs = [(x, y) for x, y in NPZ_PARTS if x in archive or y in archive]
        rows = {x: _checked(path.name, x, archive[x], y, archive[y]) for x, y in pairs}
        writers = archive.get("writers")
    if train := rows.get("x_train") or rows.get("images"):
        n = len(train.split) + len(train.unreadable)
        return Parts(train, rows.get("x_test"), _checked_writers(path.name, writers, n))
    expected = "expected x_train, y_train, x_test, y_test or images, labels"
    raise BadData(f"{path.name} holds the arrays {archive.files}, {expected}")


def _checked_writers(file: str, writers: NDArray[Any] | None, n: int) -> NDArray[Any] | None:
    if writers is not None and (writers.shape != (n,) or writers.dtype.kind not in "iuUS"):
        got = f"{writers.dtype} {writers.shape}"
        raise BadData(f"{file}: writers should be text or whole numbers of the shape ({n},) of the images, got {got}")
    return writers


def _read_csv(path: Path) -> Parts:
    """Kaggle's `train.csv`, plain or gzipped; an invalid row is unreadable, with its line and value."""
    tables: list[NDArray[np.uint8]] = []
    numbers: list[NDArray[np.int64]] = []  # of the rows, from 1
    unreadable: dict[str, str] = {}
    rows = lines = 0
    for content in kaggle_csv.chunks(path, kaggle_csv.LABELLED):
        table, positions, faults = kaggle_csv.read(content, kaggle_csv.LABELLED)
        tables.append(table)
        numbers.append(rows + positions + 1)
        line_numbers = kaggle_csv.line_numbers(content) if faults else []
        for position, fault in faults.items():
            unreadable[f"row {rows + position + 1} (line {lines + line_numbers[position]})"] = fault
        if len(unreadable) > MAX_UNREADABLE_ROWS:
            first = next(f"{name} {fault}" for name, fault in unreadable.items())
            raise BadData(f"{path.name} has more than {MAX_UNREADABLE_ROWS:,} unreadable rows; the first: {first}")
        rows, lines = rows + len(table) + len(faults), lines + content.count(b"\n")
    if not any(map(len, tables)):
        for name, fault in unreadable.items():
            raise BadData(f"{path.name}, {name} {fault}")
        raise BadData(f"{path.name} has no rows, expected a header and lines of {kaggle_csv.LABELLED} numbers")
    table, number = np.concatenate(tables), np.concatenate(numbers)
    split = Split(table[:, 1:].reshape(-1, SIZE, SIZE), table[:, 0])
    return Parts(Rows(split, lambda row: f"row {number[row]}", unreadable))


def _read_idx_folder(folder: Path) -> Parts:
    """The files of MNIST's own format, plain or gzipped: train-images, train-labels, t10k-images, t10k-labels."""
    files = _idx_files(folder)
    train, test = IDX_PARTS
    has_test = any(name in files for name in test)
    return Parts(_read_idx_split(folder, files, train), _read_idx_split(folder, files, test) if has_test else None)


def _idx_files(folder: Path) -> dict[str, Path]:
    """By their names; some copies have a dot where the original has a dash (`train-images.idx3-ubyte`)."""
    files = sorted(filter(Path.is_file, folder.iterdir()), reverse=True)
    named = {file.name.removesuffix(".gz").replace(".idx", "-idx"): file for file in files}
    return {name: named[name] for part in IDX_PARTS for name in part if name in named}


def _read_idx_split(folder: Path, files: dict[str, Path], names: tuple[str, str]) -> Rows:
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
    """Picture files in sub-folders named by their digit, or one level below in a folder per writer; hidden files are ignored."""
    entries = _visible(folder)
    unexpected = [path.name for path in entries if not (path.is_dir() and re.fullmatch("[0-9]", path.name))]
    if unexpected or not entries:
        expected = "expected sub-folders 0 to 9 with pictures, or the IDX files of MNIST"
        raise BadData(f"{folder.name} holds {next(iter(unexpected), 'nothing')!r}, {expected}")
    images: dict[str, NDArray[np.uint8]] = {}
    unreadable: dict[str, str] = {}
    for path in (file for digit in entries for file in _files_by_writer(digit)):
        name = path.relative_to(folder).as_posix()
        # Reading a pipe or a link to a device would never end.
        if not path.is_file():
            unreadable[name] = "is not a file"
            continue
        try:
            images[name] = rectification.decode(path.read_bytes())
        except (OSError, ValueError) as error:
            unreadable[name] = f"is not a readable picture of a digit: {first_line(error)}"
    if not images:
        first = next((f"{name} {reason}" for name, reason in unreadable.items()), "all sub-folders are empty")
        raise BadData(f"{folder.name} has no readable picture: {first}")
    names = list(images)
    split = Split(np.stack([*images.values()]), np.array([int(name[0]) for name in names], np.uint8))
    writers = np.array([name.split("/")[1] if name.count("/") == 2 else "" for name in names])
    return Parts(Rows(split, names.__getitem__, unreadable), writers=writers if writers.any() else None)


def _files_by_writer(digit: Path) -> list[Path]:
    return [file for path in _visible(digit) for file in (_visible(path) if path.is_dir() else [path])]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _checked(file: str, images_name: str, images: Any, labels_name: str, labels: Any) -> Rows:
    """The two arrays as rows; raises BadData where type or shape is wrong. Rows with other values are unreadable.

    Images may also be flat (n, 784) or have a channel, (n, 28, 28, 1) or (n, 1, 28, 28), and booleans, floats from 0 to 1 or of
    whole numbers.
    """
    images, labels = _whole_numbers(file, images_name, images), _whole_numbers(file, labels_name, labels)
    if images.shape[1:] in ((SIZE * SIZE,), (SIZE, SIZE, 1), (1, SIZE, SIZE)):
        images = images.reshape(-1, SIZE, SIZE)
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        shapes = (
            f"(n, {SIZE}, {SIZE}), (n, {SIZE}, {SIZE}, 1), (n, 1, {SIZE}, {SIZE}) or (n, {SIZE * SIZE}) with n >= 1"
        )
        raise BadData(f"{file}: {images_name} should have the shape {shapes}, got {images.shape}")
    if labels.shape != (len(images),):
        shape = f"({len(images)},) of {images_name}"
        raise BadData(f"{file}: {labels_name} should have the shape {shape}, got {labels.shape}")
    faults = _faults_of_range("label", labels, 9) | _faults_of_range("pixel", images, 255)
    good = np.setdiff1d(np.arange(len(images)), list(faults))
    unreadable = {f"row {row} of {images_name} (counted from 0)": faults[row] for row in sorted(faults)}
    if not len(good):
        name, fault = next(iter(unreadable.items()))
        raise BadData(f"{file}, {name} {fault}; in all, {len(images):,} rows are unusable")
    split = Split(images[good].astype(np.uint8), labels[good].astype(np.uint8))
    return Rows(split, lambda row: f"row {good[row]} of {images_name} (counted from 0)", unreadable)


def _whole_numbers(file: str, name: str, array: Any) -> NDArray[Any]:
    """Whole numbers as they are; images of booleans and floats from 0 to 1 are multiplied by 255. Raises BadData for others.

    Infinite values and those that are not a number remain, and do not count.
    """
    kind = array.dtype.kind if isinstance(array, np.ndarray) else ""
    if kind in ("i", "u"):
        return array
    if kind == "b" and array.ndim > 1:
        return array * np.uint8(255)
    got = array.dtype if kind else type(array).__name__
    if kind == "f" and (finite := array[np.isfinite(array)]).size:
        if (finite == np.rint(finite)).all() and (array.ndim == 1 or finite.max() > 1):
            return array
        if array.ndim > 1 and finite.min() >= 0 and finite.max() <= 1:
            return np.rint(array * 255)
        got = f"{got} from {finite.min():g} to {finite.max():g}"
    raise BadData(f"{file}: {name} should be whole numbers (uint8) or, of images, floats from 0 to 1, got {got}")


def _faults_of_range(kind: str, array: NDArray[Any], highest: int) -> dict[int, str]:
    """What is wrong with each row that has a value outside 0 to `highest`, or one that is not a number."""
    wrong = ~((array >= 0) & (array <= highest))
    faults = {}
    for row in np.flatnonzero(wrong.reshape(len(array), -1).any(axis=1)).tolist():
        place = tuple(np.argwhere(wrong[row])[0].tolist()) if array.ndim > 1 else ()
        at = f" at {place}" if place else ""
        faults[row] = f"has the {kind} {array[(row, *place)]}{at}, expected a whole number 0 to {highest}"
    return faults


def _ends_with(*endings: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.name.lower().endswith(endings)


# The first format that matches reads the path.
FORMATS = (
    Format("an .npz", _ends_with(".npz"), _read_npz),
    Format("a .csv[.gz]", _ends_with(".csv", ".csv.gz"), _read_csv),
    Format("a folder of IDX files", lambda path: path.is_dir() and bool(_idx_files(path)), _read_idx_folder),
    Format("a folder of pictures by digit", Path.is_dir, _read_pictures),
)
