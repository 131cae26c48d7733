"""Kaggle's CSV, for training (a label and 784 pixels per row) and for batch prediction (784 pixels per row).

A file is read a few megabytes at a time: pyarrow reads chunks without faults, and a slower reader finds the fault of each row.
"""

import gzip
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digits.data.datasets import BadData
from digits.images import PIXELS

# About 2,300 rows: smaller chunks take longer to parse, larger ones only need more memory.
CHUNK_BYTES = 4 << 20
PIXEL_NAMES = [f"pixel{pixel}" for pixel in range(PIXELS)]
LABELLED = 1 + PIXELS  # columns of a training file

_NUMBER = re.compile("[+]?0*[0-9]{1,3}")


def chunks(path: Path, columns: int) -> Iterator[bytes]:
    """All lines in their order, a few megabytes at a time.

    A header becomes a blank line; raises BadData where it names other columns.
    """
    with path.open("rb") as raw, gzip.open(raw) if path.suffix.lower() == ".gz" else nullcontext(raw) as file:
        is_first = True
        while content := file.read(CHUNK_BYTES) + (rest := file.readline(CHUNK_BYTES)):
            if len(rest) == CHUNK_BYTES:
                raise BadData(f"{path.name} has a line of more than {CHUNK_BYTES:,} bytes; give a Kaggle CSV")
            yield _without_header(path.name, content, columns) if is_first else content
            is_first = False


def _without_header(file: str, content: bytes, columns: int) -> bytes:
    content = content.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as some editors write it
    line = content.lstrip().partition(b"\n")[0]
    names = [name.strip(' "\r').lower() for name in line.decode(errors="replace").split(",")]
    if not line or names[0].isdecimal():
        return content
    expected = _names(columns)[0]
    if len(names) != columns or (names[0] == "label") != (expected == "label"):
        start = f"begins with {names[0][:40]!r} and has {len(names)} columns"
        raise BadData(f"{file} {start}, expected {expected!r} and {columns}")
    # Such as `pixel0`, or `1x1` in another common copy of MNIST; a transposed image would pass every check of its values.
    places = [tuple(map(int, re.findall("[0-9]+", name))) for name in names[columns - PIXELS :]]
    if all(places) and places != sorted(places):
        raise BadData(
            f"{file} has the pixels in another order than {names[columns - PIXELS]!r} to the last; sort its columns"
        )
    return content.replace(line, b"", 1)


def read(content: bytes, columns: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
    """The values (n, columns) of the valid rows, their positions (n,) among all rows, and the fault of each other row.

    Positions count from 0 and leave out blank lines.
    """
    values = read_strictly(content, columns)
    return read_tolerantly(content, columns) if values is None else (values, np.arange(len(values)), {})


def read_strictly(content: bytes, columns: int) -> NDArray[np.uint8] | None:
    """The values (n, columns) where every line holds valid ones; `read_tolerantly` accepts all that this accepts."""
    import pyarrow as pa  # 1 s to import, and not installed where the service runs
    from pyarrow import csv

    # Arrow reads 0x10 as 16.
    if b"x" in content or b"X" in content or content.isspace():
        return None
    names = _names(columns)
    try:
        table = csv.read_csv(
            pa.BufferReader(content),
            csv.ReadOptions(column_names=names, use_threads=False, block_size=4 * CHUNK_BYTES),
            csv.ParseOptions(quote_char=False),
            csv.ConvertOptions(column_types=dict.fromkeys(names, pa.uint8()), null_values=[]),
        )
    except pa.ArrowInvalid:
        return None
    values: NDArray[np.uint8] = table.combine_chunks().to_batches()[0].to_tensor().to_numpy()
    return None if columns == LABELLED and values[:, 0].max() > 9 else values


def read_tolerantly(content: bytes, columns: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
    """As `read`, line by line."""
    rows, positions, faults = [], [], {}
    for position, line in enumerate(line for line in _split(content) if line.strip()):
        fields = [field.strip() for field in line.split(",")]
        if fault := _fault(fields, columns):
            faults[position] = fault
        else:
            rows.append([int(field) for field in fields])
            positions.append(position)
    return np.array(rows, np.uint8).reshape(-1, columns), np.array(positions, np.int64), faults


def line_numbers(content: bytes) -> list[int]:
    """The number, from 1, of the line that holds each row."""
    return [number for number, line in enumerate(_split(content), 1) if line.strip()]


def _split(content: bytes) -> list[str]:
    return re.split("\r\n|\r|\n", content.decode(errors="replace"))


def _names(columns: int) -> list[str]:
    return ["label"] * (columns == LABELLED) + PIXEL_NAMES


def _fault(fields: list[str], columns: int) -> str | None:
    """What is wrong with the fields of a row; None for a valid one."""
    if len(fields) != columns:
        return f"has {len(fields)} values, expected {columns}; it begins {','.join(fields)[:40]!r}"
    for name, field in zip(_names(columns), fields, strict=True):
        highest = 9 if name == "label" else 255
        if not _NUMBER.fullmatch(field) or int(field) > highest:
            return f"has the {name} {field[:40]!r}, expected a whole number 0 to {highest}"
    return None
