"""Batch prediction: files of any size in, answers out, in bounded memory; what cannot be read as an image is set aside with its reason."""

import csv
import gzip
import logging
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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

from digits.data.datasets import BadData
from digits.data.sources import MIN_INK, is_header, row_fault
from digits.images import PIXELS, SIZE, Images, Labels

log = logging.getLogger("digits.score")

CHUNK_BYTES = 4 << 20  # of CSV, about 2,300 rows: smaller ones parse slower, larger ones only need more memory
CHUNK_ROWS = 4096  # of Parquet
WRITTEN_ROWS = 1 << 20  # answers held back, so that Parquet gets row groups of that many
PIXEL_NAMES = [f"pixel{pixel}" for pixel in range(PIXELS)]
SCHEMA = pa.schema([("ImageId", pa.int64()), ("Label", pa.uint8())])
KINDS = "a Kaggle .csv, .csv.gz or .parquet"

_READ = pa_csv.ReadOptions(column_names=PIXEL_NAMES, use_threads=False, block_size=4 * CHUNK_BYTES)
_PARSE = pa_csv.ParseOptions(quote_char=False)
_CONVERT = pa_csv.ConvertOptions(column_types=dict.fromkeys(PIXEL_NAMES, pa.uint8()), null_values=[])
_PLAIN = re.compile("[0-9]{1,3}(,[0-9]{1,3})*")

Given = TypeVar("Given")
Result = TypeVar("Result")
Answer = Callable[[Images], NDArray[np.float32]]  # (n, 28, 28) -> (n, 10)


@dataclass(frozen=True)
class Chunk:
    """Some rows of the source as they stand there; made to be pickled and sent to another process."""

    content: Any  # bytes: lines of CSV; pyarrow.RecordBatch: rows of Parquet
    progress: int  # bytes of a CSV file, rows of a Parquet file


@dataclass(frozen=True)
class Rows:
    """A chunk, read: every row of it is an image or has a fault."""

    images: Images  # (n, 28, 28)
    places: NDArray[np.int64]  # (n,), of the images among the rows of the chunk, counted from 0
    faults: dict[int, str]  # by place
    progress: int

    def __len__(self) -> int:
        return len(self.places) + len(self.faults)


@dataclass(frozen=True)
class Answered:
    """A chunk, answered: every row of it has a digit or a fault."""

    digits: Labels  # (n,)
    places: NDArray[np.int64]  # (n,), as in Rows
    faults: dict[int, str]
    brightest: int  # pixel, of all images
    progress: int

    def __len__(self) -> int:
        return len(self.places) + len(self.faults)


Mapped = Callable[[Callable[[Chunk], Answered], Iterable[Chunk]], Iterator[Answered]]


@dataclass(frozen=True)
class Count:
    """What became of the rows of a file."""

    answered: int
    rejected: int
    target: Path
    side_file: Path

    @property
    def rows(self) -> int:
        return self.answered + self.rejected

    @property
    def sentence(self) -> str:
        """The balance on one line."""
        where = f" (reasons in {self.side_file})" if self.rejected else ""
        return (
            f"{self.rows:,} rows in = {self.answered:,} answered in {self.target} + {self.rejected:,} rejected{where}"
        )


def in_threads(function: Callable[[Given], Result], chunks: Iterable[Given]) -> Iterator[Result]:
    """The results in the order of the chunks, on every core of this machine, with few chunks in memory at a time."""
    workers = os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(function, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def score(source: Path, target: Path, answer: Answer, mapped: Mapped = in_threads) -> Count:
    """Answer every row of `source` (`.csv[.gz]`, `.parquet`) and write `ImageId`, `Label` to `target` (`.csv`, `.parquet`).

    ImageId is the number of the row in the source, from 1. Rows that are no image of 784 whole numbers 0 to 255 go to
    `target` with the suffix `.rejected.csv`, with number and reason. Both files appear whole, at the end, or not at all.
    `mapped` applies a function to chunks and gives the results in their order; function and chunks can be pickled when
    `answer` can, so that other machines may do it. Raises BadData where the source as a whole cannot be read.
    """
    if source.resolve() == target.resolve():
        raise ValueError(f"the answers cannot be written over their source {source}; give another file")
    if not source.is_file():
        raise BadData(f"the source {source} is no file; give {KINDS}")
    return write(mapped(partial(answer_chunk, answer=answer), chunks(source)), source, target)


def answer_chunk(chunk: Chunk, answer: Answer) -> Answered:
    """Read and answer some rows of the source."""
    return answer_rows(read(chunk), answer)


def answer_rows(rows: Rows, answer: Answer) -> Answered:
    """The most probable digit of every image."""
    images = rows.images
    digits = answer(images).argmax(axis=1) if len(images) else np.zeros(0)
    return Answered(
        digits.astype(np.uint8), rows.places, rows.faults, int(images.max(initial=0)), progress=rows.progress
    )


# Reading: a strict fast way for chunks without faults, and a tolerant one that finds the fault of each row.


def chunks(source: Path) -> Iterator[Chunk]:
    """The source, a few megabytes at a time; raises BadData where it is damaged or holds something else."""
    if not source.name.lower().endswith((".csv", ".csv.gz", ".parquet")):
        raise BadData(f"{source.name} is no known kind of file; give {KINDS}")
    with _reading(source):
        yield from _parquet_chunks(source) if _is_parquet(source) else _csv_chunks(source)


def read(chunk: Chunk) -> Rows:
    """The images of a chunk, and what is wrong with its other rows."""
    if not isinstance(chunk.content, bytes):
        return _read_batch(chunk.content, chunk.progress)
    images = _read_lines_strictly(chunk.content)
    if images is not None:
        return Rows(images, np.arange(len(images)), {}, chunk.progress)
    return _read_lines(chunk.content, chunk.progress)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadData(f"{source.name} cannot be read, it is damaged or cut off: {words}") from error


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _csv_chunks(path: Path) -> Iterator[Chunk]:
    """Whole lines; the header, which may be missing, is left out."""
    with path.open("rb") as raw, ExitStack() as opened:
        lines: Any = opened.enter_context(gzip.open(raw)) if path.suffix.lower() == ".gz" else raw
        rest, at, first = b"", 0, True
        while block := lines.read(CHUNK_BYTES):
            content, newline, rest = (rest + block).rpartition(b"\n")
            if first and newline:
                content, first = _without_header(path.name, content + newline), False
            if content:
                yield Chunk(content if content.endswith(b"\n") else content + b"\n", raw.tell() - at)
                at = raw.tell()
            if len(rest) > CHUNK_BYTES:
                raise BadData(f"{path.name} has a line of more than {CHUNK_BYTES:,} bytes; give {KINDS}")
        rest = _without_header(path.name, rest) if first else rest
        if rest.strip():
            yield Chunk(rest + b"\n", raw.tell() - at)


def _without_header(name: str, content: bytes) -> bytes:
    content = content.removeprefix(b"\xef\xbb\xbf").lstrip()  # a byte order mark, as some editors write it
    line, _, rest = content.partition(b"\n")
    return rest if is_header(name, line.decode(errors="replace"), PIXELS) else content


def _read_lines_strictly(content: bytes) -> Images | None:
    """The images (n, 28, 28) where every line holds one; what is taken here, the tolerant way takes too."""
    if b"x" in content or b"X" in content:  # Arrow reads 0x10 as 16
        return None
    try:
        table = pa_csv.read_csv(pa.BufferReader(content), _READ, _PARSE, _CONVERT)
    except pa.ArrowInvalid:
        return None
    if table.num_rows != content.count(b"\n"):  # blank lines, or another end of line
        return None
    return table.combine_chunks().to_batches()[0].to_tensor().to_numpy().reshape(-1, SIZE, SIZE)


def _read_lines(content: bytes, progress: int) -> Rows:
    """Line by line; blank ones are no rows."""
    lines = [line for line in re.split("\r\n|\r|\n", content.decode(errors="replace")) if line.strip()]
    images, places, faults = [], [], {}
    for place, line in enumerate(lines):
        numbers = _numbers(line)
        if isinstance(numbers, str):
            faults[place] = numbers
        else:
            images.append(numbers)
            places.append(place)
    pixels = np.array(images, np.uint8).reshape(-1, SIZE, SIZE)
    return Rows(pixels, np.array(places, np.int64), faults, progress)


def _numbers(line: str) -> list[int] | str:
    """The 784 pixels of a line, or its fault. The pattern spares most lines the look at each field, ten times as slow."""
    fields = [field.strip() for field in line.split(",")]
    if not (len(fields) == PIXELS and _PLAIN.fullmatch(line)) or max(map(int, fields)) > 255:
        fault = row_fault(fields, PIXELS)
        if fault:
            return fault
    return [int(field) for field in fields]


def _parquet_chunks(path: Path) -> Iterator[Chunk]:
    """Rows of a column `image` of 784 bytes or whole numbers each, or else of the columns `pixel0` … `pixel783`.

    The first takes less time and memory: each of 784 columns has a buffer and an unpacked page of up to a megabyte.
    """
    # read as it comes, not a row group ahead
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        columns = _pixel_columns(path.name, file.schema_arrow)
        for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
            yield Chunk(batch.select(columns), batch.num_rows)


def _pixel_columns(name: str, schema: Any) -> list[str]:
    if "image" in schema.names:
        kind = schema.field("image").type
        if not (_is_bytes(kind) or (_is_list(kind) and pa.types.is_integer(kind.value_type))):
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


def _is_list(kind: Any) -> bool:
    return any(is_(kind) for is_ in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _read_batch(batch: Any, progress: int) -> Rows:
    whole = batch.column(0) if batch.num_columns == 1 else None
    places, faults = np.arange(batch.num_rows), {}
    if whole is None:
        table = np.stack([column.fill_null(0).to_numpy() for column in batch.columns], axis=1)
        absent = np.stack([column.is_null().to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)
    else:
        length = pc.binary_length if _is_bytes(whole.type) else pc.list_value_length
        lengths = length(whole).fill_null(-1).to_numpy()
        faults = {int(place): _length_fault(lengths[place]) for place in np.flatnonzero(lengths != PIXELS)}
        places = np.flatnonzero(lengths == PIXELS)
        table, absent = _table(whole.filter(pa.array(lengths == PIXELS)))
    out_of_range = absent | (table < 0) | (table > 255)
    for row in np.flatnonzero(out_of_range.any(axis=1)):
        pixel = int(out_of_range[row].argmax())
        value = "no value" if absent[row, pixel] else f"the value {table[row, pixel]}"
        faults[int(places[row])] = f"has {value} in pixel{pixel}, expected a whole number 0 to 255"
    good = ~out_of_range.any(axis=1)
    return Rows(table[good].astype(np.uint8).reshape(-1, SIZE, SIZE), places[good], faults, progress)


def _length_fault(length: int) -> str:
    return "has no image" if length < 0 else f"has an image of {length} values, expected {PIXELS}"


def _table(images: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The numbers of a column of 784 each, (n, 784), and which of them are absent."""
    if _is_bytes(images.type):
        table = np.frombuffer(b"".join(images.to_pylist()), np.uint8).reshape(-1, PIXELS)
        return table, np.zeros(table.shape, bool)
    values = pc.list_flatten(images)
    absent = values.is_null().to_numpy(zero_copy_only=False).reshape(-1, PIXELS)
    return values.fill_null(0).to_numpy().reshape(-1, PIXELS), absent


# Writing


def write(answers: Iterable[Answered], source: Path, target: Path) -> Count:
    """Write the answers and the rejected rows as `score` says, with a progress bar; raises BadData when there are none."""
    side_file = target.with_suffix(".rejected.csv")
    answered = rejected = brightest = 0
    with _progress(source) as bar, _table_writer(target) as write_answers, _row_writer(side_file) as write_rejected:
        for chunk in answers:
            before = answered + rejected
            write_answers(before + chunk.places + 1, chunk.digits)
            write_rejected((before + place + 1, chunk.faults[place]) for place in sorted(chunk.faults))
            answered, rejected = answered + len(chunk.places), rejected + len(chunk.faults)
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
    if _is_parquet(source):
        with _reading(source):
            rows = pq.read_metadata(source).num_rows
        return tqdm(total=rows, unit=" rows", unit_scale=True, disable=None)
    return tqdm(total=source.stat().st_size, unit="B", unit_scale=True, disable=None)


@contextmanager
def _table_writer(target: Path) -> Iterator[Callable[[NDArray[np.int64], Labels], None]]:
    """A function that takes numbers and digits of more rows; they are in `target` when the block ends well."""
    if target.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"cannot write {target.name}; give a .csv or .parquet for the answers")
    held: list[Any] = []

    def flush() -> None:
        if held:
            writer.write_table(pa.Table.from_batches(held))
            held.clear()

    def write_more(numbers: NDArray[np.int64], digits: Labels) -> None:
        held.append(pa.record_batch([pa.array(numbers), pa.array(digits)], schema=SCHEMA))
        if sum(batch.num_rows for batch in held) >= WRITTEN_ROWS:
            flush()

    with _whole(target) as part:
        if _is_parquet(target):
            writer = pq.ParquetWriter(part, SCHEMA)
        else:
            writer = pa_csv.CSVWriter(part, SCHEMA, write_options=pa_csv.WriteOptions(quoting_header="none"))
        with writer:
            yield write_more
            flush()


@contextmanager
def _row_writer(target: Path) -> Iterator[Callable[[Iterable[tuple[int, str]]], None]]:
    """A function that takes numbers and faults of more rows; where none came, there is no file, not even an older one."""
    with _whole(target) as part, part.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["row", "reason"])
        empty = file.tell()
        yield rows.writerows
        if file.tell() == empty:
            target.unlink(missing_ok=True)
            part.unlink()


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path beside the target; what is written there becomes the target when the block ends well."""
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        if part.exists():
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)
