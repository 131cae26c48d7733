"""The strict and the tolerant reader of Kaggle's CSV agree."""

import gzip
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from digits.data import kaggle_csv
from digits.data.datasets import BadData
from digits.data.kaggle_csv import LABELLED, PIXEL_NAMES

HEADER = ",".join(PIXEL_NAMES)
ROW = ",".join(["7"] * 784)

field = st.one_of(
    st.integers(0, 300).map(str),
    st.sampled_from(
        ["", " 7", "7 ", "+7", "-0", "007", "0x1F", "0X1f", "1e1", "1.0", "NA", "null", '"3"', "1_0", "٣", "\t9"]
    ),
    st.text(st.characters(blacklist_characters="\n\r,", blacklist_categories=("Cs",)), max_size=5),
)


@settings(deadline=None)
@pytest.mark.parametrize("columns", [784, LABELLED])
@given(fields=st.lists(field, min_size=1, max_size=3))
@example(fields=["0x10"])
@example(fields=["\x0b5", "5\x0c"])
@example(fields=["10"])
def test_the_strict_reader_accepts_only_what_the_tolerant_one_accepts(columns: int, fields: list[str]) -> None:
    content = (",".join(fields + ["0"] * (columns - len(fields))) + "\n").encode()
    values = kaggle_csv.read_strictly(content, columns)
    if values is not None:
        tolerated, _, faults = kaggle_csv.read_tolerantly(content, columns)
        assert not faults
        assert (values == tolerated).all()


@settings(max_examples=20)
@given(st.binary(min_size=784, max_size=784))
def test_the_strict_reader_accepts_plain_numbers(numbers: bytes) -> None:
    values = kaggle_csv.read_strictly((",".join(map(str, numbers)) + "\n").encode(), 784)
    assert values is not None and values.tobytes() == numbers


@pytest.mark.parametrize("chunk_bytes", [100, 8_000, 1 << 20])
@pytest.mark.parametrize("text", [f"\n{HEADER}\n{ROW}\n\n{ROW}\n1,2", f"{ROW}\n{ROW}\r\n\r\n1,2\n\n"])
def test_the_chunks_hold_every_row_once_and_know_its_line(
    text: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kaggle_csv, "CHUNK_BYTES", chunk_bytes)
    (tmp_path / "test.csv.gz").write_bytes(gzip.compress(text.encode()))
    if chunk_bytes < len(ROW):
        with pytest.raises(BadData, match="has a line of more than"):
            list(kaggle_csv.chunks(tmp_path / "test.csv.gz", 784))
        return
    rows, before = 0, 0
    found: dict[int, str] = {}
    for content in kaggle_csv.chunks(tmp_path / "test.csv.gz", 784):
        values, _, faults = kaggle_csv.read(content, 784)
        rows += len(values)
        found |= {before + kaggle_csv.line_numbers(content)[position]: fault for position, fault in faults.items()}
        before += content.count(b"\n")
    line = 1 + text[: text.index("1,2")].count("\n")
    assert rows == 2 and found == {line: "has 2 values, expected 784; it begins '1,2'"}
