"""Batch prediction answers or rejects every row, whatever the kind of file, in bounded memory."""

import csv
import gzip
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from conftest import Files
from numpy.typing import NDArray

from digits import reference
from digits.data import kaggle_csv
from digits.data.datasets import BadData
from digits.data.kaggle_csv import PIXEL_NAMES
from models import onnx_model, scoring
from models.onnx_model import OnnxModel

HEADER = ",".join(PIXEL_NAMES)
Table = NDArray[np.int_]


@pytest.fixture(scope="module")
def table(champion_files: Files) -> Table:
    """A few hundred real digits, one per row."""
    return reference.from_bytes(champion_files["reference.npz"]).images.reshape(-1, 784).astype(int)


@pytest.fixture(scope="module")
def model(champion_files: Files) -> OnnxModel:
    return onnx_model.load(champion_files["model.onnx"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred rows are many chunks."""
    monkeypatch.setattr(kaggle_csv, "CHUNK_BYTES", 60_000)
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 50)


def lines(table: Table) -> list[str]:
    return [",".join(map(str, row)) for row in table.tolist()]


def write_csv(path: Path, rows: Iterable[str], header: str | None = HEADER, end: str = "\n") -> Path:
    text = end.join([*([header] if header else []), *rows]) + end
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read_answers(path: Path) -> dict[int, int]:
    table = pq.read_table(path) if path.suffix == ".parquet" else pa_csv.read_csv(path)
    assert table.column_names == ["ImageId", "Label"]
    return dict(zip(table["ImageId"].to_pylist(), table["Label"].to_pylist(), strict=True))


def read_rejected(path: Path) -> dict[int, str]:
    with path.open(newline="") as file:
        return {int(row["row"]): row["reason"] for row in csv.DictReader(file)}


def expected(model: OnnxModel, table: Table) -> dict[int, int]:
    images = table.astype(np.uint8).reshape(-1, 28, 28)
    return dict(enumerate(model.predict_proba(images).argmax(axis=1).tolist(), start=1))


@pytest.mark.parametrize("name", ["test.csv", "test.csv.gz", "TEST.CSV"])
def test_kaggles_test_file_becomes_a_submission(name: str, table: Table, model: OnnxModel, tmp_path: Path) -> None:
    source, target = write_csv(tmp_path / name, lines(table)), tmp_path / "submission.csv"
    count = scoring.score(source, target, model.predict_proba)
    assert (count.answered, count.rejected) == (len(table), 0)
    assert read_answers(target) == expected(model, table)
    assert target.read_text().startswith("ImageId,Label\n1,")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "submission.csv"])


@pytest.mark.parametrize(
    "write",
    [
        lambda path, rows: write_csv(path, rows, header=None),
        lambda path, rows: write_csv(path, rows, end="\r\n"),
        lambda path, rows: write_csv(path, rows, header=",".join(f'"{name}"' for name in PIXEL_NAMES)),
        lambda path, rows: write_csv(path, [*rows[:7], "", "  ", *rows[7:], ""]),
        lambda path, rows: path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\n{chr(10).join(rows)}".encode()),
    ],
    ids=["no header", "windows", "quoted header", "blank lines", "byte order mark, no last newline"],
)
def test_other_spellings_of_the_same_file(
    write: Callable[[Path, list[str]], Any], table: Table, model: OnnxModel, tmp_path: Path
) -> None:
    write(tmp_path / "test.csv", lines(table))
    scoring.score(tmp_path / "test.csv", tmp_path / "out.csv", model.predict_proba)
    assert read_answers(tmp_path / "out.csv") == expected(model, table)


def test_bad_rows_go_to_the_side_file_with_their_reason(table: Table, model: OnnxModel, tmp_path: Path) -> None:
    rows = lines(table)
    bad = {
        1: ("256" + rows[0][1:], "has the pixel0 '256', expected a whole number 0 to 255"),
        2: (rows[1] + ",0", "has 785 values, expected 784"),
        100: ("1,2,3", "has 3 values, expected 784; it begins '1,2,3'"),
        101: (rows[100].replace(",0", ",", 1), "has the pixel1 ''"),
        102: ("0x10" + rows[101][1:], "has the pixel0 '0x10'"),
        103: ("-1" + rows[102][1:], "has the pixel0 '-1'"),
        104: ("9" * 5000 + rows[103][1:], "has the pixel0 '9999"),
        105: ('"5"' + rows[104][1:], "has the pixel0 '\"5\"'"),
        106: ("\x00\xff" + rows[105], "has the pixel0"),
        len(rows): ("end of file", "has 1 values"),
    }
    for number, (line, _) in bad.items():
        rows[number - 1] = line
    source = write_csv(tmp_path / "test.csv", rows)
    count = scoring.score(source, tmp_path / "submission.csv", model.predict_proba)
    rejected = read_rejected(tmp_path / "submission.rejected.csv")
    assert count.rejected == len(bad) and count.answered + count.rejected == len(table)
    assert f"{len(table)} rows in" in count.sentence and "submission.rejected.csv" in count.sentence
    assert rejected.keys() == bad.keys()
    for number, (_, reason) in bad.items():
        assert reason in rejected[number]
    kept = {number: digit for number, digit in expected(model, table).items() if number not in bad}
    assert read_answers(tmp_path / "submission.csv") == kept


def test_an_old_side_file_does_not_outlive_its_cause(table: Table, model: OnnxModel, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "test.csv", [*lines(table[:5]), "x"])
    count = scoring.score(source, tmp_path / "out.csv", model.predict_proba)
    assert count.side_file.exists()
    write_csv(source, lines(table[:6]))
    scoring.score(source, tmp_path / "out.csv", model.predict_proba)
    assert not count.side_file.exists()


PARQUET: dict[str, Callable[[Table], dict[str, Any]]] = {
    "fixed-size bytes": lambda t: {"image": pa.array([row.astype(np.uint8).tobytes() for row in t], pa.binary(784))},
    "bytes": lambda t: {"image": pa.array([row.astype(np.uint8).tobytes() for row in t])},
    "lists": lambda t: {"image": pa.array(t.tolist())},
    "fixed-size lists": lambda t: {"image": pa.array(t.tolist(), pa.list_(pa.uint8(), 784))},
    "pixel columns": lambda t: {name: t[:, i] for i, name in reversed(list(enumerate(PIXEL_NAMES)))},
    "pixel columns of bytes": lambda t: {name: t[:, i].astype(np.uint8) for i, name in enumerate(PIXEL_NAMES)},
}


@pytest.mark.parametrize("kind", PARQUET)
def test_parquet_in_parquet_out(kind: str, table: Table, model: OnnxModel, tmp_path: Path) -> None:
    columns = {"note": ["x"] * len(table), **PARQUET[kind](table)}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=130)
    count = scoring.score(tmp_path / "in.parquet", tmp_path / "out.parquet", model.predict_proba)
    assert count.answered == len(table) and not count.rejected
    assert read_answers(tmp_path / "out.parquet") == expected(model, table)
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 1


BAD_PARQUET: dict[str, tuple[Callable[[Table], dict[str, Any]], dict[int, str]]] = {
    "bytes": (
        lambda t: {"image": pa.array([None, b"short", *(row.astype(np.uint8).tobytes() for row in t[2:])])},
        {1: "has 1 values, expected 784; it begins 'None'", 2: "has 5 values, expected 784"},
    ),
    "lists": (
        lambda t: {"image": pa.array([[None, *row[1:]] if i == 60 else [*row, 1][: 784 + (i == 61)] if i != 62
                                      else None if i == 62 else row for i, row in enumerate(t.tolist())])},
        {61: "has the pixel0 'None'", 62: "has 785 values, expected 784", 63: "it begins 'None'"},
    ),
    "pixel columns": (
        lambda t: {name: pa.array([(None if i == 70 else 256 if i == 71 else -1 if i == 72 else value)
                                   if name == "pixel5" else value for i, value in enumerate(t[:, int(name[5:])].tolist())])
                   for name in PIXEL_NAMES},
        {71: "has the pixel5 'None'", 72: "has the pixel5 '256', expected a whole", 73: "has the pixel5 '-1'"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_PARQUET)
def test_bad_rows_of_parquet(kind: str, table: Table, model: OnnxModel, tmp_path: Path) -> None:
    spoil, reasons = BAD_PARQUET[kind]
    pq.write_table(pa.table(spoil(table)), tmp_path / "in.parquet")
    count = scoring.score(tmp_path / "in.parquet", tmp_path / "out.csv", model.predict_proba)
    rejected = read_rejected(tmp_path / "out.rejected.csv")
    assert rejected.keys() == reasons.keys()
    for number, reason in reasons.items():
        assert reason in rejected[number]
    assert count.answered + count.rejected == len(table)
    kept = {number: digit for number, digit in expected(model, table).items() if number not in reasons}
    assert read_answers(tmp_path / "out.csv") == kept


NO_IMAGES: dict[str, tuple[list[Any], str]] = {
    "floats": ([[0.0] * 784, [0.5] * 784], "has the pixel0 '0.0', expected a whole number 0 to 255"),
    "texts": (["a\nb"] * 2, "it begins \"'a"),
    "numbers": ([5, 6], "has 1 values, expected 784; it begins"),
    "empty": ([b"", b""], "has 1 values, expected 784; it begins 'no values'"),
    "structs": ([{"a": 1, "b": 2}] * 2, "has 2 values, expected 784; it begins"),
    "truth values": ([[True] * 784, None], ""),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_other_types_of_parquet_are_rejected_row_by_row(kind: str, model: OnnxModel, tmp_path: Path) -> None:
    images, reason = NO_IMAGES[kind]
    pq.write_table(pa.table({"image": images}), tmp_path / "in.parquet")
    count = scoring.score(tmp_path / "in.parquet", tmp_path / "out.csv", model.predict_proba)
    assert (count.answered, count.rejected) == (0, 2)
    assert reason in read_rejected(tmp_path / "out.rejected.csv")[1]


def pixel_table(kind: pa.DataType) -> pa.Table:
    return pa.table({name: pa.array([0], kind) for name in PIXEL_NAMES})


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "training file": ("t.csv", lambda p: p.write_text("label," + HEADER + "\n"), "begins with 'label' and has 785"),
    "empty": ("t.csv", lambda p: p.write_text(""), "t.csv has no rows"),
    "only a header": ("t.csv", lambda p: p.write_text(HEADER + "\n\n"), "t.csv has no rows"),
    "one long line": ("t.csv", lambda p: p.write_bytes(b"1," * 200_000), "has a line of more than"),
    "cut gzip": ("t.csv.gz", lambda p: p.write_bytes(gzip.compress(b"1,2\n" * 9000)[:-9]), "damaged or cut off"),
    "no gzip": ("t.csv.gz", lambda p: p.write_bytes(b"1,2,3"), "damaged or cut off"),
    "no parquet": ("t.parquet", lambda p: p.write_bytes(b"PAR1 or not"), "t.parquet cannot be read"),
    "empty parquet": ("t.parquet", lambda p: pq.write_table(pixel_table(pa.uint8())[:0], p), "has no rows"),
    "other columns": (
        "t.parquet",
        lambda p: pq.write_table(pa.table({"x": [1]}), p),
        "no column image and not all of pixel0",
    ),
    "other kind": ("t.json", lambda p: p.write_text("[]"), "begins with .* and has 1 columns"),
    "missing": ("t.csv", lambda p: None, "No such file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_at_all_is_refused_and_leaves_nothing(what: str, model: OnnxModel, tmp_path: Path) -> None:
    name, make, sentence = REFUSED[what]
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadData, match=sentence):
        scoring.score(tmp_path / name, tmp_path / "out.csv", model.predict_proba)
    assert sorted(tmp_path.iterdir()) == before


def test_an_earlier_answer_survives_a_refusal(table: Table, model: OnnxModel, tmp_path: Path) -> None:
    source, target = tmp_path / "test.csv.gz", tmp_path / "out.csv"
    write_csv(source, lines(table))
    scoring.score(source, target, model.predict_proba)
    before = target.read_bytes()
    source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(BadData):
        scoring.score(source, target, model.predict_proba)
    assert target.read_bytes() == before


def test_the_source_is_not_overwritten(table: Table, model: OnnxModel, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "test.csv", lines(table[:3]))
    with pytest.raises(ValueError, match="cannot be written over their source"):
        scoring.score(source, tmp_path / "." / "test.csv", model.predict_proba)


def first_pixel(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A stand-in for a model that can be sent to another process: the digit is the first pixel."""
    return np.eye(10, dtype=np.float32)[images[:, 0, 0]]


def in_processes(function: Any, chunks: Iterable[Any]) -> Iterator[Any]:
    with ProcessPoolExecutor(2) as pool:
        yield from pool.map(function, chunks)


def test_chunks_can_be_answered_in_other_processes(table: Table, tmp_path: Path) -> None:
    numbered = table.copy()
    numbered[:, 0] = np.arange(len(table)) % 10
    write_csv(tmp_path / "in.csv", [*lines(numbered), "bad"])
    pq.write_table(pa.table(PARQUET["fixed-size bytes"](numbered)), tmp_path / "in.parquet")
    for source in (tmp_path / "in.csv", tmp_path / "in.parquet"):
        chunk = next(scoring.chunks(source))
        assert len(scoring.read(pickle.loads(pickle.dumps(chunk)))[0]) == len(scoring.read(chunk)[0]) > 0
        scoring.score(source, tmp_path / "out.csv", first_pixel, in_processes)
        assert read_answers(tmp_path / "out.csv") == {i + 1: i % 10 for i in range(len(table))}
    scoring.score(tmp_path / "in.csv", tmp_path / "out.csv", first_pixel, in_processes)
    assert read_rejected(tmp_path / "out.rejected.csv").keys() == {len(table) + 1}


def test_threads_keep_the_order_and_few_chunks_in_memory() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = scoring.in_threads(lambda number: number * 2, numbers())
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert len(taken) < 1000
    assert list(results) == [2 * number for number in range(3, 1000)]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, champion_files: Files) -> None:
    """Peak resident memory, of a process of its own: a file eight times as large may not need twice the memory."""
    (tmp_path / "model.onnx").write_bytes(champion_files["model.onnx"])
    program = (
        "import re, sys\nfrom pathlib import Path\nfrom models import scoring\nfrom models import onnx_model\n"
        "model = onnx_model.load(Path(sys.argv[1], 'model.onnx').read_bytes())\n"
        "scoring.score(Path(sys.argv[2]), Path(sys.argv[1], 'out.parquet'), model.predict_proba)\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"  # kB; ru_maxrss is the parent's too
    )

    def peak(rows: int) -> int:
        images = np.random.default_rng(0).integers(0, 256, (rows, 784), np.uint8)
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(784), rows, [None, pa.py_buffer(images.tobytes())])
        pq.write_table(pa.table({"image": column}), tmp_path / "in.parquet", row_group_size=rows, compression=None)
        command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "in.parquet")]
        output = subprocess.check_output(
            command, cwd=Path(__file__).parent.parent, text=True, stderr=subprocess.DEVNULL
        )
        return int(output) * 1024

    small, large = peak(40_000), peak(320_000)  # 31 MB and 251 MB of pixels
    assert large - small < 60e6
