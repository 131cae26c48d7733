"""Batch prediction: files of any size, in bounded memory; rows that hold no image are rejected with the reason."""

import csv
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from digits.data import kaggle_csv
from digits.data.datasets import BadData, reading
from digits.data.kaggle_csv import PIXEL_NAMES
from digits.data.sources import MIN_INK
from digits.files import replacing
from digits.images import PIXELS, SIZE, Images, Labels

log = logging.getLogger("digits.score")

CHUNK_ROWS = 4096  # of Parquet
GROUP_ROWS = 1 << 20  # predictions that are written together, a row group of Parquet
SCHEMA = pa.schema([("ImageId", pa.int64()), ("Label", pa.uint8())])
KINDS = "a Kaggle .csv, .csv.gz or .parquet"

Given = TypeVar("Given")
Result = TypeVar("Result")
PredictProba = Callable[[Images], NDArray[np.float32]]  # (n, 28, 28) -> (n, 10)


@dataclass(frozen=True)
class Chunk:
    """Some rows of the source, unparsed; it can be pickled and sent to another process."""

    content: Any  # bytes: lines of CSV; pyarrow.RecordBatch: rows of Parquet
    progress: int  # bytes of a CSV file, rows of a Parquet file


@dataclass(frozen=True)
class Rows:
    """A parsed chunk: every row of it is an image or has a fault."""

    images: Images  # (n, 28, 28)
    positions: NDArray[np.int64]  # (n,), of the images among the rows of the chunk, counted from 0
    faults: dict[int, str]  # by position
    progress: int

    def __len__(self) -> int:
        return len(self.positions) + len(self.faults)


@dataclass(frozen=True)
class Predictions:
    """The predictions for a chunk: every row of it has a digit or a fault."""

    digits: Labels  # (n,)
    positions: NDArray[np.int64]  # (n,), as in Rows
    faults: dict[int, str]
    brightest: int  # pixel of all images
    progress: int


MapChunks = Callable[[Callable[[Chunk], Predictions], Iterable[Chunk]], Iterator[Predictions]]


@dataclass(frozen=True)
class Count:
    """How many rows of a file were predicted and rejected."""

    answered: int
    rejected: int
    target: Path
    side_file: Path

    @property
    def rows(self) -> int:
        return self.answered + self.rejected

    @property
    def sentence(self) -> str:
        """The count on one line."""
        reasons = f" (reasons in {self.side_file})" if self.rejected else ""
        answered = f"{self.answered:,} answered in {self.target}"
        return f"{self.rows:,} rows in = {answered} + {self.rejected:,} rejected{reasons}"


def in_threads(function: Callable[[Given], Result], chunks: Iterable[Given]) -> Iterator[Result]:
    """The results in the order of the chunks, on all cores of this machine, with few chunks in memory at a time."""
    workers = os.cpu_count() or 1
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in chunks:
            pending.append(pool.submit(function, chunk))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def score(source: Path, target: Path, predict_proba: PredictProba, map_chunks: MapChunks = in_threads) -> Count:
    """Predict every row of `source` (`.csv[.gz]`, `.parquet`) and write `ImageId`, `Label` to `target` (`.csv`, `.parquet`).

    ImageId is the number of the row in the source, from 1. Rows that do not hold 784 whole numbers 0 to 255 go to
    `target` with the suffix `.rejected.csv`, with number and reason. Both files appear complete, at the end, or not at all.
    `map_chunks` applies a function to chunks and returns the results in their order; function and chunks can be pickled
    where `predict_proba` can, for execution on other machines. Raises BadData where the source as a whole cannot be read.
    """
    if source.resolve() == target.resolve():
        raise ValueError(f"the predictions cannot be written over their source {source}; give another file")
    if not source.is_file():
        raise BadData(f"the source {source} is no file; give {KINDS}")
    return write(map_chunks(partial(predict_chunk, predict_proba=predict_proba), chunks(source)), source, target)


def predict_chunk(chunk: Chunk, predict_proba: PredictProba) -> Predictions:
    """Parse and predict some rows of the source."""
    return predict_rows(read(chunk), predict_proba)


def predict_rows(rows: Rows, predict_proba: PredictProba) -> Predictions:
    """The most probable digit of every image."""
    digits = predict_proba(rows.images).argmax(axis=1) if len(rows.images) else np.zeros(0)
    brightest = int(rows.images.max(initial=0))
    return Predictions(digits.astype(np.uint8), rows.positions, rows.faults, brightest, rows.progress)


# Reading


def chunks(source: Path) -> Iterator[Chunk]:
    """The source, a few megabytes at a time; raises BadData where it is damaged or of another kind."""
    if not source.name.lower().endswith((".csv", ".csv.gz", ".parquet")):
        raise BadData(f"{source.name} is no known kind of file; give {KINDS}")
    with reading(source):
        if _is_parquet(source):
            yield from _parquet_chunks(source)
        else:
            yield from (Chunk(content, progress) for content, progress in kaggle_csv.chunks(source, PIXELS))


def read(chunk: Chunk) -> Rows:
    """The images of a chunk, and the faults of its other rows."""
    if not isinstance(chunk.content, bytes):
        return _read_batch(chunk.content, chunk.progress)
    pixels, positions, faults = kaggle_csv.read(chunk.content, PIXELS)
    return Rows(pixels.reshape(-1, SIZE, SIZE), positions, faults, chunk.progress)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _parquet_chunks(path: Path) -> Iterator[Chunk]:
    """Rows of a column `image` of 784 bytes or whole numbers each, or else of the columns `pixel0` … `pixel783`.

    The first takes less time and memory: each of 784 columns has a buffer and an unpacked page of up to a megabyte.
    """
    # Without pre_buffer, which reads a row group ahead.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        columns = _pixel_columns(path.name, file.schema_arrow)
        for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
            yield Chunk(batch.select(columns), batch.num_rows)


def _pixel_columns(name: str, schema: Any) -> list[str]:
    if "image" in schema.names:
        kind = schema.field("image").type
        is_list = any(is_(kind) for is_ in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
        if not (_is_bytes(kind) or (is_list and pa.types.is_integer(kind.value_type))):
            raise BadData(f"{name}: the column image holds {kind}, expected {PIXELS} bytes or whole numbers per row")
        return ["image"]
    missing = [pixel for pixel in PIXEL_NAMES if pixel not in schema.names]
    if missing:
        raise BadData(f"{name} has no column image and no {missing[0]}; it has {', '.join(schema.names)[:80]!r}")
    for pixel in PIXEL_NAMES:
        if not pa.types.is_integer(schema.field(pixel).type):
            raise BadData(f"{name}: the column {pixel} holds {schema.field(pixel).type}, expected whole numbers")
    return PIXEL_NAMES


def _is_bytes(kind: Any) -> bool:
    return any(is_(kind) for is_ in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))


def _read_batch(batch: Any, progress: int) -> Rows:
    positions, faults = np.arange(batch.num_rows), {}
    if batch.num_columns > 1:
        table = np.stack([column.fill_null(0).to_numpy() for column in batch.columns], axis=1)
        is_null = np.stack([column.is_null().to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)
    else:
        column = batch.column(0)
        length = pc.binary_length if _is_bytes(column.type) else pc.list_value_length
        lengths = length(column).fill_null(-1).to_numpy()
        faults = {int(position): _length_fault(lengths[position]) for position in np.flatnonzero(lengths != PIXELS)}
        positions = np.flatnonzero(lengths == PIXELS)
        table, is_null = _table(column.filter(pa.array(lengths == PIXELS)))
    invalid = is_null | (table < 0) | (table > 255)
    for row in np.flatnonzero(invalid.any(axis=1)):
        pixel = int(invalid[row].argmax())
        value = "no value" if is_null[row, pixel] else f"the value {table[row, pixel]}"
        faults[int(positions[row])] = f"has {value} in pixel{pixel}, expected a whole number 0 to 255"
    valid = ~invalid.any(axis=1)
    return Rows(table[valid].astype(np.uint8).reshape(-1, SIZE, SIZE), positions[valid], faults, progress)


def _length_fault(length: int) -> str:
    return "has no image" if length < 0 else f"has an image of {length} values, expected {PIXELS}"


def _table(images: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The numbers (n, 784) of a column of images, and which of them are null."""
    if _is_bytes(images.type):
        table = np.frombuffer(b"".join(images.to_pylist()), np.uint8).reshape(-1, PIXELS)
        return table, np.zeros(table.shape, bool)
    values = pc.list_flatten(images)
    is_null = values.is_null().to_numpy(zero_copy_only=False).reshape(-1, PIXELS)
    return values.fill_null(0).to_numpy().reshape(-1, PIXELS), is_null


# Writing


def write(predictions: Iterable[Predictions], source: Path, target: Path) -> Count:
    """Write predictions and rejected rows as `score` does, with a progress bar; raises BadData when there are none."""
    side_file = target.with_suffix(".rejected.csv")
    answered = rejected = brightest = 0
    writers = _prediction_writer(target), _reject_writer(side_file)
    with _progress(source) as bar, writers[0] as write_answers, writers[1] as write_rejected:
        for chunk in predictions:
            number = answered + rejected + 1
            write_answers(number + chunk.positions, chunk.digits)
            write_rejected((number + position, fault) for position, fault in sorted(chunk.faults.items()))
            answered, rejected = answered + len(chunk.positions), rejected + len(chunk.faults)
            brightest = max(brightest, chunk.brightest)
            bar.update(chunk.progress)
        if answered + rejected == 0:
            raise BadData(f"{source.name} has no rows, expected at least one with 784 pixels")
        if _is_parquet(source) and answered + rejected != bar.total:
            raise BadData(f"{source.name} promises {bar.total:,} rows, but holds {answered + rejected:,}")
    if answered and brightest < MIN_INK:
        log.warning("the largest pixel of %s is %d, expected ink up to 255; scale it first", source, brightest)
    return Count(answered, rejected, target, side_file)


def _progress(source: Path) -> "tqdm[Any]":
    if not _is_parquet(source):
        return tqdm(total=source.stat().st_size, unit="B", unit_scale=True, disable=None)
    with reading(source):
        return tqdm(total=pq.read_metadata(source).num_rows, unit=" rows", unit_scale=True, disable=None)


@contextmanager
def _prediction_writer(target: Path) -> Iterator[Callable[[NDArray[np.int64], Labels], None]]:
    """A function that accepts row numbers and digits; they are in `target` when the block ends without an error."""
    if target.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"cannot write {target.name}; give a .csv or .parquet for the predictions")
    group: list[Any] = []

    def write_more(numbers: NDArray[np.int64], digits: Labels) -> None:
        group.append(pa.record_batch([pa.array(numbers), pa.array(digits)], schema=SCHEMA))
        if sum(batch.num_rows for batch in group) >= GROUP_ROWS:
            flush()

    def flush() -> None:
        writer.write_table(pa.Table.from_batches(group, SCHEMA))
        group.clear()

    with replacing(target) as part:
        if _is_parquet(target):
            writer = pq.ParquetWriter(part, SCHEMA)
        else:
            writer = pa_csv.CSVWriter(part, SCHEMA, write_options=pa_csv.WriteOptions(quoting_header="none"))
        with writer:
            yield write_more
            flush()


@contextmanager
def _reject_writer(target: Path) -> Iterator[Callable[[Iterable[tuple[int, str]]], None]]:
    """A function that accepts row numbers and faults; without any, `target` does not exist afterwards."""
    with replacing(target) as part:
        with part.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["row", "reason"])
            header_bytes = file.tell()
            yield rows.writerows
            is_empty = file.tell() == header_bytes
        if is_empty:
            target.unlink(missing_ok=True)
            part.unlink()
