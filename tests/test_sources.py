"""The border of the platform: what is read, what is refused and in which words."""

import gzip
import hashlib
import io
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_data import HEADER, made_up, pairs, read, read_labelled, tmp_path_is_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from digits.data import datasets, formats, sources
from digits.data.datasets import BadData, Dataset
from digits.data.sources import SourceUnavailable
from digits.images import Split

# Writers, one per kind of file


def csv_text(split: Split, header: bool = True, newline: str = "\n") -> str:
    rows = [
        ",".join(map(str, [label, *image]))
        for image, label in zip(split.images.reshape(-1, 784), split.labels, strict=True)
    ]
    return newline.join([HEADER] * header + rows) + newline


def write_csv(folder: Path, split: Split) -> Path:
    path = folder / "train.csv"
    path.write_text(csv_text(split))
    return path


def write_csv_gz(folder: Path, split: Split) -> Path:
    path = folder / "train.csv.gz"
    path.write_bytes(gzip.compress(csv_text(split).encode(), 1))
    return path


def write_npz(folder: Path, split: Split, **arrays: Any) -> Path:
    np.savez(folder / "some.npz", **{"images": split.images, "labels": split.labels, **arrays})
    return folder / "some.npz"


def write_keras_npz(folder: Path, train: Split, test: Split) -> Path:
    path = folder / "mnist.npz"
    np.savez(path, x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
    return path


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, split: Split, prefix: str = "train", dash: str = "-", pack: bool = False) -> Path:
    for kind, array, d in (("images", split.images, 3), ("labels", split.labels, 1)):
        body = idx(array)
        name = f"{prefix}-{kind}{dash}idx{d}-ubyte"
        (folder / (name + ".gz" * pack)).write_bytes(gzip.compress(body, 1) if pack else body)
    return folder


def write_pictures(folder: Path, split: Split) -> Path:
    for row, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{row:05}.png")
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


WRITERS: dict[str, Callable[[Path, Split], Path]] = {
    "csv": write_csv,
    "csv.gz": write_csv_gz,
    "npz": write_npz,
    "idx": write_idx,
    "idx with dots": partial(write_idx, dash="."),
    "idx.gz": partial(write_idx, pack=True),
    "pictures": write_pictures,
}


# What is read


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_holds_the_same_digits(kind: str, few: Split, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, few)
    found = read_labelled(path)
    assert pairs(found) == pairs(few)
    assert (found.images == few.images).all() and (found.labels == few.labels).all()  # `few` is sorted by digit


@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_without_a_test_part_is_split_in_three(kind: str, few: Split, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, few)
    dataset = read(path, tmp_path / "cache", seed=1)
    assert [len(split) for split in dataset.splits().values()] == [131, 40, 29]
    assert all(min(split.counts()) >= 1 for split in dataset.splits().values())
    assert pairs(*dataset.splits().values()) == pairs(few)
    assert dataset.source == path.name
    assert (np.diff(dataset.test.labels.astype(int)) < 0).any()  # mixed, although the source is sorted


@tmp_path_is_shared
@given(seed=st.integers(0, 2**32), n=st.integers(1, 200))
def test_an_image_keeps_its_part_when_the_source_grows(seed: int, n: int, bundled: Dataset, tmp_path: Path) -> None:
    """In any order, and beside a second copy with another label."""
    digits = datasets.join(*bundled.splits().values())
    order = np.random.default_rng(seed).permutation(len(digits))
    doubtful = Split(digits.images[:1], (digits.labels[:1] + 1) % 10)
    fewer, more = (
        Split(digits.images[order[n:]], digits.labels[order[n:]]),
        Split(digits.images[order], digits.labels[order]),
    )
    before = read(write_npz(tmp_path, fewer), tmp_path)
    after = read(write_npz(tmp_path, datasets.join(doubtful, more)), tmp_path)
    for name, split in before.splits().items():
        assert not pairs(split) - pairs(after.splits()[name])
    keys = [{key for key, _ in pairs(split)} for split in after.splits().values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == len(digits)
    assert after.overlap_removed == 0


def test_a_writer_is_in_one_part_only(bundled: Dataset, tmp_path: Path) -> None:
    """By sub-folders of a folder of pictures, and by an array of an npz; nearly the same images, and all digits of each writer."""
    split = Split(bundled.train.images[:400], bundled.train.labels[:400])
    writers = np.arange(400) // 20
    dataset = read(write_npz(tmp_path, split, writers=writers), tmp_path)
    owner = {image.tobytes(): writer for image, writer in zip(split.images, writers.tolist(), strict=True)}
    owners = [{owner[key] for key, _ in pairs(part)} for part in dataset.splits().values()]
    assert min(map(len, owners)) >= 1 and sum(map(len, owners)) == 20
    for row, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        folder = tmp_path / "pictures" / str(label) / str(writers[row])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row}.png")
    assert read(tmp_path / "pictures", tmp_path).fingerprint == dataset.fingerprint
    with pytest.raises(
        BadData, match=r"writers should be text or whole numbers of the shape \(400,\) of the images, got"
    ):
        read(write_npz(tmp_path, split, writers=writers[:7]), tmp_path)


def test_two_parts_stay_apart(bundled: Dataset, tmp_path: Path) -> None:
    path = write_keras_npz(tmp_path, bundled.train, bundled.test)
    from_npz = read(path, tmp_path)
    folder = tmp_path / "idx"
    folder.mkdir()
    write_idx(folder, bundled.train, pack=True)
    write_idx(folder, bundled.test, prefix="t10k")
    from_idx = read(folder, tmp_path)
    assert from_npz.fingerprint == from_idx.fingerprint
    assert (from_npz.test.images == bundled.test.images).all()
    assert len(from_npz.validation) == round(len(bundled.train) / 6)
    assert pairs(from_npz.train, from_npz.validation) == pairs(bundled.train)
    assert pairs(read_labelled(path)) == pairs(bundled.train, bundled.test)


@pytest.mark.parametrize(
    "images",
    [
        lambda images: images.astype(">i4"),
        lambda images: images.astype(np.int64).reshape(-1, 784),
        lambda images: images[..., None],
        lambda images: (images / 255).astype(np.float32).reshape(-1, 28, 28, 1),
        lambda images: images.astype(np.float64),
    ],
)  # fmt: skip
def test_common_types_and_shapes_are_taken(images: Callable[[Any], Any], few: Split, tmp_path: Path) -> None:
    path = write_npz(tmp_path, few, images=images(few.images), labels=few.labels.astype(np.float32))
    found = read_labelled(path)
    assert found.images.dtype == found.labels.dtype == np.uint8
    assert pairs(found) == pairs(few)


@tmp_path_is_shared
@given(seed=st.integers(0, 2**32), n=st.integers(1, 6), header=st.booleans(), newline=st.sampled_from(["\n", "\r\n"]),
       end=st.sampled_from(["", "\n", "\n\n"]), bom=st.booleans(), pack=st.booleans())  # fmt: skip
def test_csv_round_trip(
    seed: int, n: int, header: bool, newline: str, end: str, bom: bool, pack: bool, tmp_path: Path
) -> None:
    split = made_up(seed, n)
    text = ("\ufeff" * bom + csv_text(split, header, newline).rstrip() + end).encode()
    path = tmp_path / ("some.csv.gz" if pack else "some.csv")
    path.write_bytes(gzip.compress(text) if pack else text)
    found = read_labelled(path)
    assert (found.images == split.images).all() and (found.labels == split.labels).all()


@tmp_path_is_shared
@given(seed=st.integers(0, 2**32), n=st.integers(1, 6), kind=st.sampled_from(["npz", "idx", "idx.gz", "csv", "csv.gz"]))
def test_binary_and_text_agree(seed: int, n: int, kind: str, tmp_path: Path) -> None:
    split = made_up(seed, n)
    folder = tmp_path / kind
    folder.mkdir(exist_ok=True)
    assert pairs(read_labelled(WRITERS[kind](folder, split))) == pairs(split)


def test_a_kaggle_test_file_has_no_labels(few: Split, tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("\n".join(line.partition(",")[2] for line in csv_text(few).splitlines()))
    with pytest.raises(
        BadData, match=r"^test\.csv begins with 'pixel0' and has 784 columns, expected 'label' and 785$"
    ):
        read_labelled(path)


def test_the_bundled_digits_look_like_mnist(bundled: Dataset) -> None:
    assert [len(split) for split in bundled.splits().values()] == [1258, 269, 270]
    assert all(min(split.counts()) >= 0.07 * len(split) for split in bundled.splits().values())
    images = np.concatenate([split.images for split in bundled.splits().values()]).astype(float)
    ink = images.sum((1, 2))
    for axis in (1, 2):
        centres = (images.sum(3 - axis) * np.arange(28)).sum(1) / ink
        assert abs(centres.mean() - 14) < 0.1 and centres.std() < 0.4  # MNIST's: 14.00, 0.29
    assert images[:, [0, -1]].max() == images[:, :, [0, -1]].max() == 0
    assert images.max((1, 2)).min() > 200
    assert 20 < images.mean() < 50  # MNIST's: 33.3


def test_the_bundled_digits_keep_their_meaning(bundled: Dataset) -> None:
    """The nearest training image has the right label: enlarging mixed up neither images nor labels."""
    train, test = (split.images.reshape(len(split), -1).astype(float) for split in (bundled.train, bundled.test))
    distances = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)
    assert (bundled.train.labels[distances.argmin(1)] == bundled.test.labels).mean() > 0.97


def test_the_seed_decides_the_split(bundled: Dataset, tmp_path: Path) -> None:
    assert read("bundled", tmp_path).fingerprint == bundled.fingerprint == "d0c77fd7c8fc9fc2"
    other = read("bundled", tmp_path, seed=1)
    assert other.fingerprint != bundled.fingerprint
    assert pairs(*other.splits().values()) == pairs(*bundled.splits().values())


# What is refused

INK = "\n1" + ",255" * 10 + ",0" * 774

CSV_FAULTS = {
    "300": "row 3 (line 4) has the pixel4 '300', expected a whole number 0 to 255",
    "-1": "row 3 (line 4) has the pixel4 '-1', expected a whole number 0 to 255",
    "1.5": "row 3 (line 4) has the pixel4 '1.5', expected a whole number 0 to 255",
    "seven": "row 3 (line 4) has the pixel4 'seven', expected a whole number 0 to 255",
    "": "row 3 (line 4) has the pixel4 '', expected a whole number 0 to 255",
    "nan": "row 3 (line 4) has the pixel4 'nan', expected a whole number 0 to 255",
    "1,2": "row 3 (line 4) has 786 values, expected 785; it begins",
    "9" * 30: f"row 3 (line 4) has the pixel4 '{'9' * 30}', expected a whole number 0 to 255",
}


@pytest.mark.parametrize("value", CSV_FAULTS)
def test_a_bad_value_is_refused_by_row_and_value(value: str, few: Split, tmp_path: Path) -> None:
    lines = csv_text(few).splitlines()
    fields = lines[3].split(",")
    fields[5] = value
    lines[3] = ",".join(fields)
    path = tmp_path / "train.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(BadData) as refusal:
        read(path, tmp_path)
    assert str(refusal.value).startswith(f"train.csv, {CSV_FAULTS[value]}")
    assert "\n" not in str(refusal.value)


@tmp_path_is_shared
@given(
    row=st.integers(0, 4),
    column=st.integers(0, 784),
    value=st.sampled_from(["256", "-3", "2.0", "1e2", "x", "1 2", "٣"]),
)
def test_any_bad_value_is_found_where_it_stands(row: int, column: int, value: str, tmp_path: Path) -> None:
    lines = csv_text(made_up(0, 5)).splitlines()
    fields = lines[row + 1].split(",")
    fields[column] = value
    lines[row + 1] = ",".join(fields)
    path = tmp_path / "some.csv"
    path.write_text("\n".join(lines))
    name = "label" if column == 0 else f"pixel{column - 1}"
    with pytest.raises(BadData) as refusal:
        read_labelled(path)
    assert f"some.csv, row {row + 1} (line {row + 2}) has the {name} {value!r}, expected" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "train.csv has no rows, expected a header and lines of 785 numbers"),
        (HEADER, "train.csv has no rows, expected a header and lines of 785 numbers"),
        ("a text\nthat is no table", "train.csv begins with 'a text' and has 1 columns, expected 'label' and 785"),
        ("x" * 3_000_000, f"train.csv begins with '{'x' * 40}' and has 1 columns, expected 'label' and 785"),
        (HEADER + "\n10" + ",0" * 784, "train.csv, row 1 (line 2) has the label '10', expected a whole number 0 to 9"),
        (HEADER + INK + "\n2,0,0\n", "train.csv, row 2 (line 3) has 3 values, expected 785; it begins '2,0,0'"),
        (
            ",".join(["label", *(f"{row}x{column}" for column in range(1, 29) for row in range(1, 29))]) + INK,
            "train.csv has the pixels in another order than '1x1' to the last; sort its columns",
        ),
        ("7,0,0\n7,0,0\n", "train.csv, row 1 (line 1) has 3 values, expected 785; it begins '7,0,0'"),
        (HEADER + "\n" + INK + "\n\n2\n", "train.csv, row 2 (line 5) has 1 values, expected 785; it begins '2'"),
    ],
)  # fmt: skip
def test_what_is_no_kaggle_table_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(BadData) as refusal:
        read(path, tmp_path)
    assert str(refusal.value) == sentence


def test_a_csv_of_nothing_but_faults_is_refused_before_their_reasons_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took 11 s for each 1,000 rows, and 400 bytes for each."""
    monkeypatch.setattr(formats, "MAX_UNREADABLE_ROWS", 40_000)
    (tmp_path / "log.csv").write_text("7\n" * 40_001)
    started = time.monotonic()
    with pytest.raises(
        BadData, match=r"^log\.csv has more than 40,000 unreadable rows; the first: row 1 \(line 1\) has 1 values"
    ):
        sources.read_rows(tmp_path / "log.csv")
    assert time.monotonic() - started < 10


def test_a_cut_off_csv_is_refused_by_its_last_row(few: Split, tmp_path: Path) -> None:
    plain, packed = write_csv(tmp_path, few), write_csv_gz(tmp_path, few)
    text = plain.read_bytes()
    plain.write_bytes(text[: len(text) // 2])
    rows = plain.read_bytes().count(b"\n")
    with pytest.raises(BadData, match=rf"^train\.csv, row {rows} \(line {rows + 1}\) has \d+ values, expected 785"):
        read(plain, tmp_path)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(
        BadData, match=r"^train\.csv\.gz cannot be read, it is damaged or cut off: Compressed file ended"
    ):
        read(packed, tmp_path)


NPZ_FAULTS: dict[str, tuple[Callable[[Split], dict[str, Any]], str]] = {
    "mis-shaped": (lambda s: {"images": s.images[:, :, 1:]}, "images should have the shape (n, 28, 28), (n, 28, 28, 1), (n, 1, 28, 28) or (n, 784) with n >= 1, got (200, 28, 27)"),
    "of other channels": (lambda s: {"images": np.repeat(s.images[..., None], 3, axis=3)}, "images should have the shape (n, 28, 28), (n, 28, 28, 1), (n, 1, 28, 28) or (n, 784) with n >= 1, got (200, 28, 28, 3)"),
    "empty": (lambda s: {"images": s.images[:0], "labels": s.labels[:0]}, "images should have the shape (n, 28, 28), (n, 28, 28, 1), (n, 1, 28, 28) or (n, 784) with n >= 1, got (0, 28, 28)"),
    "floats from 0 to 16": (
        lambda s: {"images": s.images / 255 * 16},
        "images should be whole numbers (uint8) or, of images, floats from 0 to 1, got float64 from 0 to 16",
    ),
    "not a number": (
        lambda s: {"images": s.images / 255 + np.nan},
        "images should be whole numbers (uint8) or, of images, floats from 0 to 1, got float64",
    ),
    "text": (
        lambda s: {"labels": s.labels.astype(str)},
        "labels should be whole numbers (uint8) or, of images, floats from 0 to 1, got <U3",
    ),
    "too few labels": (lambda s: {"labels": s.labels[:-1]}, "labels should have the shape (200,) of images, got (199,)"),
    "one-hot labels": (lambda s: {"labels": np.eye(10, dtype=int)[s.labels]}, "labels should have the shape (200,) of images, got (200, 10)"),
}  # fmt: skip

ROW_FAULTS: dict[str, tuple[Callable[[Split], dict[str, Any]], str]] = {
    "a label of 12": (lambda s: {"labels": put(s.labels, (17,), 12)}, "has the label 12, expected a whole number 0 to 9"),
    "a label of -1": (lambda s: {"labels": put(s.labels, (17,), -1)}, "has the label -1, expected a whole number 0 to 9"),
    "no label": (lambda s: {"labels": put(s.labels * 1.0, (17,), np.nan)}, "has the label nan, expected a whole number 0 to 9"),
    "a pixel of 300": (
        lambda s: {"images": put(s.images, (17, 3, 4), 300)},
        "has the pixel 300 at (3, 4), expected a whole number 0 to 255",
    ),
    "no pixel": (
        lambda s: {"images": put(s.images / 255, (17, 3, 4), np.nan)},
        "has the pixel nan at (3, 4), expected a whole number 0 to 255",
    ),
}  # fmt: skip


def put(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.astype(np.int16 if array.dtype.kind == "u" else float)
    changed[place] = value
    return changed


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_bad_arrays_are_refused_with_a_sentence(fault: str, few: Split, tmp_path: Path) -> None:
    change, sentence = NPZ_FAULTS[fault]
    path = write_npz(tmp_path, few, **change(few))
    with pytest.raises(BadData) as refusal:
        read(path, tmp_path)
    assert str(refusal.value) == f"some.npz: {sentence}"


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_wrong_value_in_an_array_is_that_of_a_row(fault: str, few: Split, tmp_path: Path) -> None:
    change, reason = ROW_FAULTS[fault]
    path = write_npz(tmp_path, few, **change(few))
    with pytest.raises(BadData) as refusal:
        read(path, tmp_path)
    assert str(refusal.value) == f"some.npz, row 17 of images (counted from 0) {reason}"
    rows = sources.read_rows(path)
    others = np.arange(200) != 17
    assert pairs(rows.split) == pairs(Split(few.images[others], few.labels[others]))
    assert rows.unreadable == {"row 17 of images (counted from 0)": reason}
    assert rows.name(17) == "row 18 of images (counted from 0)"
    arrays = {"images": few.images, "labels": few.labels} | change(few)
    both = write_npz(
        tmp_path, few, x_train=few.images, y_train=few.labels, x_test=arrays["images"], y_test=arrays["labels"]
    )
    assert sources.read_rows(both).unreadable == {"row 17 of x_test (counted from 0)": reason}
    with pytest.raises(
        BadData, match=r"row 0 of images .* expected a whole number 0 to 9; in all, 200 rows are unusable$"
    ):
        sources.read_rows(write_npz(tmp_path, few, labels=np.full(200, -1)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images: 255 - images, "has a border of mostly 255, expected paper to be 0; subtract it from 255 first"),
        (lambda images: images // 255, "has a largest value of 1, expected ink up to 255; scale it first"),
        (lambda images: images * 0, "is blank, expected the ink of a digit"),
        (lambda images: np.random.default_rng(0).integers(0, 120, images.shape), "is noise: neighbouring pixels are unrelated"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_digit_on_paper_is_refused(
    change: Callable[[Any], Any], reason: str, few: Split, tmp_path: Path
) -> None:
    images = few.images.astype(np.uint8)
    images[7] = change(few.images[7])
    with pytest.raises(BadData) as refusal:
        read(write_npz(tmp_path, few, images=images), tmp_path)
    assert str(refusal.value).startswith(f"some.npz, row 7 of images (counted from 0) {reason}")
    with pytest.raises(BadData, match=r"; in all, 200 rows are unusable$"):
        read(write_npz(tmp_path, few, images=change(few.images)), tmp_path)


def test_an_npz_with_other_names_is_refused(few: Split, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pictures=few.images)
    with pytest.raises(BadData, match=r"^a\.npz holds the arrays \['pictures'\], expected x_train, y_train"):
        read(tmp_path / "a.npz", tmp_path)
    np.savez(tmp_path / "b.npz", x_train=few.images, y_train=few.labels, x_test=few.images)
    with pytest.raises(BadData, match=r"^b\.npz cannot be read, .*: 'y_test is not a file in the archive'"):
        read(tmp_path / "b.npz", tmp_path)


def test_pickles_are_not_opened(few: Split, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "harm").write_text, ("done",))

    np.savez(tmp_path / "some.npz", images=np.array([Harmful()], dtype=object), labels=few.labels)
    with pytest.raises(BadData, match=r"^some\.npz cannot be read"):
        read(tmp_path / "some.npz", tmp_path)
    assert not (tmp_path / "harm").exists()


@settings(tmp_path_is_shared, max_examples=150)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.booleans(), bit=st.integers(0, 7))
def test_a_damaged_npz_is_refused_or_unharmed(share: float, flip: bool, bit: int, few: Split, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    np.savez_compressed(path, images=few.images[:3], labels=few.labels[:3])
    body = bytearray(path.read_bytes())
    place = int(share * len(body))
    if flip:
        body[place] ^= 1 << bit
    else:
        del body[place:]
    path.write_bytes(body)
    try:
        found = read_labelled(path)
    except BadData as refusal:
        assert str(refusal).startswith("some.npz ") and "\n" not in str(refusal)
    else:
        assert flip and pairs(found) == pairs(Split(few.images[:3], few.labels[:3]))


def test_damaged_idx_files_are_refused(few: Split, tmp_path: Path) -> None:
    def refused_with(name: str, body: bytes) -> str:
        write_idx(tmp_path, few)
        (tmp_path / name).write_bytes(body)
        with pytest.raises(BadData) as refusal:
            read(tmp_path, tmp_path)
        return str(refusal.value)

    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    assert refused_with(images, idx(few.images)[:100_000]) == (
        f"{images} cannot be read, it is damaged or cut off: cannot reshape array of size 99984 into shape (200,28,28)"
    )
    assert refused_with(images, idx(few.images) + b"\0").startswith(f"{images} cannot be read")
    assert refused_with(images, b"") == f"{images} begins with nothing, expected the IDX magic number 00000803"
    assert (
        refused_with(images, b"<html>" * 99) == f"{images} begins with 3c68746d, expected the IDX magic number 00000803"
    )
    assert refused_with(labels, idx(few.labels[:-1])).endswith(
        f"{labels} should have the shape (200,) of {images}, got (199,)"
    )
    wrong = few.labels.copy()
    wrong[17] = 77
    assert refused_with(labels, idx(wrong)).endswith(
        f"row 17 of {images} (counted from 0) has the label 77, expected a whole number 0 to 9"
    )
    (tmp_path / labels).unlink()
    with pytest.raises(BadData, match=r"has no train-labels-idx1-ubyte, plain or \.gz"):
        read(tmp_path, tmp_path)


def test_a_cut_off_idx_gz_is_refused(few: Split, tmp_path: Path) -> None:
    write_idx(tmp_path, few, pack=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        BadData, match=r"^train-images-idx3-ubyte\.gz cannot be read, it is damaged or cut off: Compressed"
    ):
        read(tmp_path, tmp_path)


def test_a_bad_picture_is_refused_by_its_name(few: Split, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_pictures(folder, few)
    (folder / "3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(BadData, match=r"^pictures, 3/broken\.png is not a readable picture of a digit: "):
        read(folder, tmp_path)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_what_is_no_file_is_not_read_as_a_picture(kind: str, few: Split, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_pictures(folder, few)
    strange = folder / "3" / "strange.png"
    if kind == "a pipe":
        os.mkfifo(strange)
    elif kind == "a device":
        strange.symlink_to("/dev/zero")
    else:
        (strange / "deep").mkdir(parents=True)
        strange /= "deep"
    rows = sources.read_rows(folder)
    assert rows.unreadable == {strange.relative_to(folder).as_posix(): "is not a file"} and len(rows.split) == 200


def test_a_folder_of_something_else_is_refused(few: Split, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(BadData, match=r"^pictures holds 'nothing', expected sub-folders 0 to 9 with pictures"):
        read(folder, tmp_path)
    write_pictures(folder, few)
    (folder / "seven").mkdir()
    with pytest.raises(BadData, match=r"^pictures holds 'seven', expected sub-folders 0 to 9 with pictures"):
        read(folder, tmp_path)


def test_an_unknown_source_is_answered_with_what_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"^the source 'minst' does not exist; give `mnist`, `bundled`, or the path of"):
        read("minst", tmp_path)
    (tmp_path / "digits.xlsx").write_bytes(b"PK")
    with pytest.raises(BadData, match=r"^digits\.xlsx is in no known format; give `mnist`, `bundled`, or the path of"):
        read(tmp_path / "digits.xlsx", tmp_path)


def test_every_digit_must_be_there_and_not_rare(few: Split, tmp_path: Path) -> None:
    without_seven = few.labels != 7
    path = write_npz(tmp_path, Split(few.images[without_seven], few.labels[without_seven]))
    with pytest.raises(BadData, match=r"^some\.npz: digit 7 has 0 of 180 images, expected at least 2% of each digit$"):
        read(path, tmp_path)
    rare = without_seven | (np.arange(200) == np.argmax(few.labels == 7))
    path = write_npz(tmp_path, Split(few.images[rare], few.labels[rare]))
    with pytest.raises(BadData, match=r"^some\.npz: digit 7 has 1 of 181 images, expected at least 2% of each digit$"):
        read(path, tmp_path)
    assert len(read_labelled(path)) == 181  # the inbox takes what it gets


def test_too_few_to_split_is_refused(few: Split, tmp_path: Path) -> None:
    rows = np.arange(0, 200, 10)  # two of each digit
    with pytest.raises(
        BadData,
        match=r"^some\.npz: digit 0 has too few images or writers, none is left for the train part; add more of it$",
    ):
        read(write_npz(tmp_path, Split(few.images[rows], few.labels[rows])), tmp_path)
    rows = np.concatenate([rows, rows + 1])
    smallest = read(write_npz(tmp_path, Split(few.images[rows], few.labels[rows])), tmp_path)
    assert all(min(split.counts()) >= 1 for split in smallest.splits().values())


# What train and test share


def test_images_of_the_test_part_are_removed_from_train_and_counted(bundled: Dataset, tmp_path: Path) -> None:
    leaked = Split(bundled.test.images[:40], (bundled.test.labels[:40] + 1) % 10)  # whatever they are labelled
    dataset = read(write_keras_npz(tmp_path, datasets.join(bundled.train, leaked), bundled.test), tmp_path)
    assert dataset.overlap_removed == 40
    assert datasets.describe(dataset)["overlap_removed"] == 40
    assert pairs(dataset.train, dataset.validation) == pairs(bundled.train)
    assert len(dataset.test) == 270
    with pytest.raises(BadData, match=r"^mnist\.npz: all 270 training images are also in the test part"):
        read(write_keras_npz(tmp_path, bundled.test, bundled.test), tmp_path)


def test_doubles_of_a_single_part_do_not_straddle_train_and_test(few: Split, tmp_path: Path) -> None:
    dataset = read(write_npz(tmp_path, datasets.join(few, few, few)), tmp_path)
    kept, tested = pairs(dataset.train, dataset.validation), pairs(dataset.test)
    assert not kept.keys() & tested.keys()
    assert dataset.overlap_removed == 0 and kept.total() + tested.total() == 600


# MNIST, wherever it is


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A web server on this machine in the place of the one that Keras fetches MNIST from."""
    answer: dict[str, Any] = {"status": 200, "body": b"", "requests": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["requests"] += 1
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"][: answer.get("cut_at")])

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    monkeypatch.setattr(sources, "MNIST_URL", f"http://127.0.0.1:{running.server_port}/mnist.npz")
    yield answer
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def body(bundled: Dataset, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An `mnist.npz` and its digest in the place of MNIST's."""
    buffer = io.BytesIO()
    train, test = bundled.train, bundled.test
    np.savez(buffer, x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
    monkeypatch.setattr(sources, "MNIST_SHA256", hashlib.sha256(buffer.getvalue()).hexdigest())
    return buffer.getvalue()


def test_mnist_comes_from_the_first_place_that_has_it(server: dict[str, Any], body: bytes, tmp_path: Path) -> None:
    server["body"] = body
    cache, keras_cache, given = tmp_path / "cache", tmp_path / "keras.npz", tmp_path / "given.npz"
    fetched = read("mnist", cache, keras_cache=keras_cache)
    assert server["requests"] == 1 and fetched.source == "mnist"
    assert [file.name for file in cache.iterdir()] == ["mnist.npz"]
    assert (cache / "mnist.npz").read_bytes() == body
    server["status"] = 500
    again = read("mnist", cache, keras_cache=keras_cache)
    assert server["requests"] == 1 and again.fingerprint == fetched.fingerprint
    for path, marked in ((keras_cache, made_up(1, 600)), (given, made_up(2, 600))):
        np.savez(path, images=marked.images, labels=marked.labels)
        dataset = read("mnist", cache, keras_cache=keras_cache, mnist=given if given.exists() else None)
        assert pairs(*dataset.splits().values()) == pairs(marked)
    assert server["requests"] == 1


def test_a_bad_cache_is_passed_over_and_a_bad_given_file_is_not(
    server: dict[str, Any], body: bytes, tmp_path: Path
) -> None:
    server["body"] = body
    keras_cache = tmp_path / "keras.npz"
    keras_cache.write_bytes(body[:1000])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mnist.npz").write_bytes(body[:1000])
    assert len(read("mnist", tmp_path / "cache", keras_cache=keras_cache).test) == 270
    assert (tmp_path / "cache" / "mnist.npz").read_bytes() == body
    with pytest.raises(BadData, match=r"^keras\.npz cannot be read, .*: File is not a zip file") as refusal:
        read("mnist", tmp_path / "cache", mnist=keras_cache)
    assert not isinstance(refusal.value, SourceUnavailable)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 404}, "404 Not Found"),
        ({"body": b"<html>please log in</html>"}, "its 26 bytes have the SHA-256"),
        ({"cut_at": 1000}, "peer closed connection"),
    ],
)
def test_what_is_not_mnist_is_not_kept(
    answer: dict[str, Any], reason: str, server: dict[str, Any], body: bytes, tmp_path: Path
) -> None:
    server.update({"body": body, **answer})
    with pytest.raises(SourceUnavailable) as refusal:
        read("mnist", tmp_path / "cache")
    sentence = str(refusal.value)
    assert reason in sentence and "DIGITS_MNIST is not set" in sentence
    assert sentence.endswith("set DIGITS_MNIST to the path of an mnist.npz, or use `--data bundled`")
    assert "\n" not in sentence
    assert not list(tmp_path.rglob("*.npz*"))


def test_a_setting_that_names_no_file_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "mnist.npz"
    with pytest.raises(
        BadData, match=f"^DIGITS_MNIST names {missing}, which does not exist; correct it or unset it$"
    ) as error:
        read("mnist", tmp_path / "cache", mnist=missing)
    assert not isinstance(error.value, SourceUnavailable)


def test_without_a_network_the_answer_is_quick_and_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MNIST_URL", "http://127.0.0.1:9/mnist.npz")  # the discard port: nobody listens
    start = time.monotonic()
    with pytest.raises(
        SourceUnavailable, match=r"^MNIST is unavailable: DIGITS_MNIST is not set, there is no .*Connection refused"
    ):
        read("mnist", tmp_path)
    assert time.monotonic() - start < sources.DOWNLOAD_TIMEOUT_SECONDS


def test_a_silent_network_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        monkeypatch.setattr(sources, "MNIST_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/mnist.npz")
        monkeypatch.setattr(sources, "DOWNLOAD_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(SourceUnavailable, match="timed out"):
            read("mnist", tmp_path)


@pytest.mark.skipif("DIGITS_MNIST" not in os.environ, reason="set DIGITS_MNIST to the path of an mnist.npz")
def test_real_mnist(tmp_path: Path) -> None:
    dataset = read("mnist", tmp_path, mnist=Path(os.environ["DIGITS_MNIST"]))
    about = datasets.describe(dataset)
    assert about["images"] == {"train": 50_000, "validation": 10_000, "test": 10_000}
    assert about["overlap_removed"] == 0
    assert min(about["images_per_digit"]["test"]) == 892
    assert dataset.fingerprint == "a4a72b9790bcc760"  # recorded with every run: the split of a source must not change
    compact = datasets.resplit(dataset, 0.2, 0)
    assert (len(compact.train), len(compact.validation)) == (48_000, 12_000)
    assert datasets.load(tmp_path, datasets.save(dataset, tmp_path).name).fingerprint == dataset.fingerprint
