"""Batch prediction of large files, of which a few chunks are in memory at a time; rows that hold no image are rejected with the reason."""

import csv
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from digits.data import kaggle_csv
from digits.data.datasets import BadData, reading
from digits.data.kaggle_csv import PIXEL_NAMES
from digits.files import replacing
from digits.images import PIXELS, SIZE, PredictProba

CHUNK_ROWS = 4096  # of Parquet
SCHEMA = pa.schema([("ImageId", pa.int64()), ("Label", pa.uint8())])

Item = TypeVar("Item")
Result = TypeVar("Result")
Chunk = Any  # bytes, lines of CSV, or pyarrow.RecordBatch, rows of Parquet; unparsed, and it can be pickled
# The valid rows of a chunk (images, or digits once they are predicted), their positions among all of its rows, counted
# from 0, and the fault of each other row.
Rows = tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]
MapChunks = Callable[[Callable[[Chunk], Rows], Iterable[Chunk]], Iterator[Rows]]


@dataclass(frozen=True)
class Count:
    """How many rows of a file were predicted and rejected."""

    answered: int
    rejected: int
    target: Path
    side_file: Path

    @property
    def sentence(self) -> str:
        reasons = f" (reasons in {self.side_file})" if self.rejected else ""
        answered = f"{self.answered:,} answered in {self.target}"
        return f"{self.answered + self.rejected:,} rows in = {answered} + {self.rejected:,} rejected{reasons}"


def in_order(submit: Callable[[Item], Result], items: Iterable[Item], limit: Callable[[], int]) -> Iterator[Result]:
    """What `submit` returns for each item, a future, with at most `limit()` of them pending while the next is awaited."""
    pending: deque[Result] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) > limit():
            yield pending.popleft()
    yield from pending


def in_threads(function: Callable[[Item], Result], chunks: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the chunks, on all cores of this machine, with few chunks in memory at a time."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for future in in_order(lambda chunk: pool.submit(function, chunk), chunks, limit=lambda: 2 * workers):
            yield future.result()


def score(source: Path, target: Path, predict_proba: PredictProba, map_chunks: MapChunks = in_threads) -> Count:
    """Predict every row of `source` (`.csv[.gz]`, `.parquet`) and write `ImageId`, `Label` to `target`, as Parquet or CSV.

    ImageId is the number of the row in the source, from 1. Rows that do not hold 784 whole numbers 0 to 255 go to
    `target` with the suffix `.rejected.csv`, with number and reason. Both files appear complete, at the end, or not at all.
    `map_chunks` applies a function to chunks and returns the results in their order; function and chunks can be pickled
    where `predict_proba` can, for execution on other machines. Raises BadData where the source as a whole cannot be read.
    """
    if source.resolve() == target.resolve():
        raise ValueError(f"the predictions cannot be written over their source {source}; give another file")
    return write(map_chunks(partial(predict_chunk, predict_proba=predict_proba), chunks(source)), source, target)


def predict_chunk(chunk: Chunk, predict_proba: PredictProba) -> Rows:
    """The most probable digit of every valid row of a chunk."""
    images, positions, faults = read(chunk)
    digits = predict_proba(images).argmax(axis=1) if len(images) else np.zeros(0)
    return digits.astype(np.uint8), positions, faults


# Reading


def chunks(source: Path) -> Iterator[Chunk]:
    """The source, a few megabytes at a time; raises BadData where it is damaged or holds something else."""
    with reading(source):
        if source.suffix.lower() == ".parquet":
            yield from _batches(source)
        else:
            yield from kaggle_csv.chunks(source, PIXELS)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Rows of a column `image` of 784 bytes or whole numbers each, or else of the columns `pixel0` … `pixel783`.

    The first takes less time and memory: each of 784 columns has a buffer and an unpacked page of up to a megabyte.
    """
    # Without pre_buffer, which reads a row group ahead.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        names = file.schema_arrow.names
        columns = ["image"] if "image" in names else PIXEL_NAMES
        if not set(columns).issubset(names):
            raise BadData(f"{path.name} has no column image and not all of pixel0 to pixel783; it has {names[:9]}")
        for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
            yield batch.select(columns)


def read(chunk: Chunk) -> Rows:
    """The images of a chunk, and the faults of its other rows."""
    if isinstance(chunk, bytes):
        pixels, positions, faults = kaggle_csv.read(chunk, PIXELS)
    elif (values := _read_strictly(chunk)) is None:
        pixels, positions, faults = kaggle_csv.read_tolerantly(_to_csv(chunk), PIXELS)
    else:
        pixels, positions, faults = values, np.arange(len(values)), {}
    return pixels.reshape(-1, SIZE, SIZE), positions, faults


def _read_strictly(batch: pa.RecordBatch) -> NDArray[np.uint8] | None:
    """The pixels (n, 784) of a batch in which every row holds valid ones."""
    column = batch.column(0)
    try:
        if batch.num_columns > 1:
            values = batch.to_tensor().to_numpy()
        elif pa.types.is_nested(column.type):
            values = column.cast(pa.list_(column.type.value_type, PIXELS)).flatten().to_numpy()
        else:
            values = np.frombuffer(b"".join(column.cast(pa.binary(PIXELS)).to_pylist()), np.uint8)
    # AttributeError for a column of structs, TypeError for null among bytes.
    except (pa.ArrowException, AttributeError, TypeError):
        return None
    pixels = values.astype(np.uint8)
    is_valid = values.dtype.kind in "iu" and values.size == PIXELS * len(batch) and np.array_equal(pixels, values)
    return pixels.reshape(-1, PIXELS) if is_valid else None


def _to_csv(batch: pa.RecordBatch) -> bytes:
    """One line for each row; what is no number stays readable in the fault that the reader of CSV finds."""
    columns = [column.to_pylist() for column in batch.columns]
    rows = zip(*columns, strict=True) if batch.num_columns > 1 else columns[0]
    values = (row if isinstance(row, list | tuple | bytes) else [row] for row in rows)
    return "\n".join(",".join(map(repr, row)) or "no values" for row in values).encode()


# Writing


def write(predictions: Iterable[Rows], source: Path, target: Path) -> Count:
    """Write predictions and rejected rows as `score` does, with a progress bar; raises BadData when there are none."""
    side_file = target.with_suffix(".rejected.csv")
    answered = rejected = 0
    batches: list[pa.RecordBatch] = []  # 9 bytes for a row
    with replacing(target) as part, replacing(side_file) as side_part, tqdm(unit=" rows", disable=None) as progress:
        with side_part.open("w", newline="") as file:
            rejects = csv.writer(file)
            rejects.writerow(["row", "reason"])
            for digits, positions, faults in predictions:
                number = answered + rejected + 1
                batches.append(pa.record_batch([number + positions, digits], schema=SCHEMA))
                rejects.writerows((number + position, fault) for position, fault in faults.items())
                answered, rejected = answered + len(digits), rejected + len(faults)
                progress.update(len(digits) + len(faults))
        if not answered + rejected:
            raise BadData(f"{source.name} has no rows, expected at least one with {PIXELS} pixels")
        if target.suffix.lower() == ".parquet":
            pq.write_table(pa.Table.from_batches(batches), part)
        else:
            pa_csv.write_csv(pa.Table.from_batches(batches), part, pa_csv.WriteOptions(quoting_header="none"))
        if not rejected:
            side_part.unlink()
            side_file.unlink(missing_ok=True)
    return Count(answered, rejected, target, side_file)
