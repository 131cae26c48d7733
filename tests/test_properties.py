"""What holds whatever comes: random input never gets past the borders, the gate is fair, and the log loses nothing."""

import gzip
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from digits import images
from digits.data import datasets, sources
from digits.data.datasets import BadData
from digits.images import Split
from digits.pictures import rectification
from digits.storage import database, predictions
from digits.storage.database import DatabaseUnavailable
from digits.storage.predictions import PredictionBatch, new_ids
from models.gate import EvaluationSample, GatePolicy, GateVerdict, ModelFacts, judge
from services.prediction_log import PredictionLog
from services.write_ahead_log import Buffer

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# The pixel contract

pixels = st.integers(0, 255)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


def as_rows(seed: int) -> list[list[Any]]:
    rows: list[list[Any]] = np.random.default_rng(seed).integers(0, 256, (28, 28)).tolist()
    return rows


@quick
@given(json_values)
def test_any_json_is_images_or_refused_with_a_sentence(value: Any) -> None:
    assert_images_or_sentence(value)


@quick
@given(st.integers(0, 9), st.integers(0, 27), st.integers(0, 27), json_values, st.booleans())
def test_one_strange_value_among_pixels_is_found(seed: int, row: int, column: int, value: Any, whole_row: bool) -> None:
    rows = as_rows(seed)
    if whole_row:
        rows[row] = value
    else:
        rows[row][column] = value
    assert_images_or_sentence(rows)
    assert_images_or_sentence([as_rows(1), rows])


def assert_images_or_sentence(value: Any) -> None:
    try:
        found = images.check(images.from_json(value))
    except ValueError as error:
        assert 10 < len(str(error)) < 300 and "\n" not in str(error)
    else:
        many = [value] if images.is_single(value) else value
        assert np.array_equal(found, np.array(many, np.float64))


@quick
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=3), st.booleans())
def test_images_come_through_json_bit_by_bit(seeds: list[int], as_floats: bool) -> None:
    sent = [np.array(as_rows(seed), float if as_floats else int) for seed in seeds]
    assert np.array_equal(images.from_json([image.tolist() for image in sent]), np.stack(sent))


# Pictures and files with damage

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
Damage = list[tuple[str, float, bytes]]
damages: st.SearchStrategy[Damage] = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "overwrite")), st.floats(0, 1), st.binary(min_size=1, max_size=8)
    ),
    max_size=4,
)


def damaged(body: bytes, damage: Damage) -> bytes:
    for kind, share, some in damage:
        place = int(share * len(body))
        if kind == "flip" and place < len(body):
            body = body[:place] + bytes([body[place] ^ (some[0] or 1)]) + body[place + 1 :]
        elif kind == "cut":
            body = body[:place]
        elif kind == "insert":
            body = body[:place] + some + body[place:]
        elif kind == "overwrite":
            body = body[:place] + some + body[place + len(some) :]
    return body


def picture(seed: int, kind: str, mode: str) -> bytes:
    random = np.random.default_rng(seed)
    paper = np.zeros((40, 50), np.uint8)
    paper[8:32, 20:26] = random.integers(128, 256)
    buffer = io.BytesIO()
    picture = Image.fromarray(paper).convert(mode)
    picture.save(
        buffer,
        kind,
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
        if kind in ("JPEG", "PNG", "WEBP")
        else b"",
    )
    return buffer.getvalue()


@settings(quick, max_examples=300)
@given(st.integers(0, 9), st.sampled_from(FORMATS), st.sampled_from(("L", "RGB", "P", "1")), damages)
def test_any_damaged_picture_is_decoded_or_refused_with_a_sentence(
    seed: int, kind: str, mode: str, damage: Damage
) -> None:
    mode = "RGB" if (kind, mode) in {("JPEG", "P"), ("WEBP", "P"), ("WEBP", "1")} else mode
    body = damaged(picture(seed, kind, mode), damage)
    try:
        found = rectification.decode(body)
    except ValueError as error:
        assert 10 < len(str(error)) < 300 and "\n" not in str(error)
    else:
        assert found.dtype == np.uint8 and found.shape == (28, 28) and found.any()
        assert np.array_equal(found, rectification.decode(body))


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_no_picture(body: bytes) -> None:
    with pytest.raises(ValueError, match="send"):
        rectification.decode(body)


def some_digits(count: int = 300) -> Split:
    random = np.random.default_rng(0)
    drawn = np.zeros((count, 28, 28), np.uint8)
    drawn[:, 4:24, 4:24] = np.kron(random.integers(0, 256, (count, 5, 5)), np.ones((4, 4)))
    return Split(drawn, (np.arange(count) % 10).astype(np.uint8))


def written() -> dict[str, dict[str, bytes]]:
    """The same digits as files of each kind that a source may consist of."""
    split = some_digits()
    npz = io.BytesIO()
    np.savez_compressed(npz, images=split.images, labels=split.labels)
    rows = [
        ",".join(map(str, [label, *image.ravel()])) for image, label in zip(split.images, split.labels, strict=True)
    ]
    csv = "\n".join([",".join(["label", *(f"pixel{index}" for index in range(784))]), *rows]).encode()
    shape = np.array(split.images.shape, ">u4").tobytes()
    idx = {
        "train-images-idx3-ubyte": b"\0\0\x08\x03" + shape + split.images.tobytes(),
        "train-labels-idx1-ubyte.gz": gzip.compress(b"\0\0\x08\x01" + shape[:4] + split.labels.tobytes()),
    }
    return {
        "npz": {"digits.npz": npz.getvalue()},
        "csv": {"train.csv": csv},
        "gz": {"train.csv.gz": gzip.compress(csv, 1)},
        "idx": idx,
    }


WRITTEN = written()


@settings(quick, max_examples=120)
@given(st.sampled_from([(kind, name) for kind, files in WRITTEN.items() for name in files]), damages)
def test_any_damaged_source_is_stored_whole_or_refused_and_not_at_all(which: tuple[str, str], damage: Damage) -> None:
    kind, damaged_name = which
    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder, "source"), Path(folder, "datasets")
        source.mkdir()
        for name, body in WRITTEN[kind].items():
            (source / name).write_bytes(damaged(body, damage) if name == damaged_name else body)
        path = source if kind == "idx" else source / damaged_name
        try:
            dataset = sources.read(str(path), mnist=None, cache=Path(folder, "cache"))
            fingerprint = datasets.save(dataset, store).name
        except BadData as error:
            assert len(str(error)) < 500 and "\n" not in str(error)
            assert not store.exists() or not list(store.iterdir())
        else:
            loaded = datasets.load(store, fingerprint)
            assert loaded.fingerprint == fingerprint == dataset.fingerprint
            for split in loaded.splits().values():
                assert len(split) == 0 or images.check(split.images) is split.images
                assert split.labels.max(initial=0) <= 9


# The gate

FIT = ModelFacts(size_bytes=400_000, milliseconds=0.05)
LABELS = (np.arange(3000) % 10).astype(np.uint8)


def answers(seed: int, wrong: int, digit: int | None) -> NDArray[np.uint8]:
    """Wrong on so many images at random, of one digit only where it is given."""
    random = np.random.default_rng(seed)
    places = np.flatnonzero(digit == LABELS) if digit is not None else np.arange(len(LABELS))
    chosen = random.choice(places, min(wrong, len(places)), replace=False)
    found = LABELS.copy()
    found[chosen] = (found[chosen] + 1) % 10
    return found


some_answers = st.builds(answers, st.integers(0, 5), st.integers(0, 300), st.none() | st.integers(0, 9))


def verdict(candidate: NDArray[np.uint8], champion: NDArray[np.uint8], order: Any = slice(None)) -> GateVerdict:
    sample = EvaluationSample("anchor", LABELS[order], candidate[order], champion[order])
    return judge([sample], FIT, FIT, GatePolicy(), significance=0.01)


@quick
@given(some_answers, some_answers, st.integers(0, 10_000))
def test_a_candidate_that_gets_more_right_is_judged_no_worse(
    candidate: NDArray[np.uint8], champion: NDArray[np.uint8], seed: int
) -> None:
    wrong = np.flatnonzero(candidate != LABELS)
    if not len(wrong):
        return
    mended = candidate.copy()
    chosen = np.random.default_rng(seed).choice(wrong, min(20, len(wrong)), replace=False)
    mended[chosen] = LABELS[chosen]
    before, after = verdict(candidate, champion), verdict(mended, champion)
    if before.decision == "promote":
        assert after.decision == "promote"
    assert after.evidence["anchor: p-value"] <= before.evidence["anchor: p-value"]


@quick
@given(some_answers, some_answers, st.integers(0, 100))
def test_the_gate_knows_no_order_and_never_promotes_both_ways(
    candidate: NDArray[np.uint8], champion: NDArray[np.uint8], seed: int
) -> None:
    found = verdict(candidate, champion)
    assert verdict(candidate, champion, np.random.default_rng(seed).permutation(len(LABELS))) == found
    assert [found.decision, verdict(champion, candidate).decision].count("promote") < 2
    assert verdict(candidate, candidate).decision == "not enough evidence"


# The log

operations = st.lists(
    st.sampled_from(("append", "append", "append", "flush", "away", "back", "disk full", "disk free", "restart")),
    min_size=5,
    max_size=30,
)


@settings(quick, max_examples=25)
@given(operations)
def test_no_order_of_events_loses_an_answer_or_doubles_one(events: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, faults() as state:
        url, spool = f"sqlite:///{folder}/digits.db", Path(folder, "spool")

        def new_log() -> PredictionLog:
            return PredictionLog(url, spool, interval_seconds=0.001, retry_seconds=0.002)

        taken: list[str] = []
        log, lost, refused = new_log(), 0, 0
        for event in events:
            if event == "append":
                count = 1 + len(taken) % 3
                batch = PredictionBatch(
                    new_ids(count),
                    NOON,
                    "1",
                    np.zeros((count, 28, 28), np.uint8),
                    np.full((count, 10), 0.1, np.float32),
                    "/classify",
                )
                if log.append(batch):
                    taken += batch.ids
                else:
                    assert state["full"]
                    refused += count
            elif event == "flush":
                assert log.flush()
            elif event == "restart":
                log.close()
                lost, log = lost + log.lost, new_log()
            else:
                state["away" if event in ("away", "back") else "full"] = event in ("away", "disk full")
        state.update(away=False, full=False)
        log.close()
        new_log().close()
        assert lost + log.lost == refused
        found = predictions.read_window(database.connect(url), NOON).ids
        assert sorted(found) == sorted(taken)
        assert list(spool.glob("*")) == []


@contextmanager
def faults() -> Iterator[dict[str, bool]]:
    """Whether the database is away and the disk full, to be changed at any time."""
    state = {"away": False, "full": False}
    insert, write = predictions.append, os.pwritev

    def inserting(*arguments: Any) -> None:
        if state["away"]:
            raise DatabaseUnavailable("away")
        insert(*arguments)

    def writing(file: int, parts: list[Buffer], start: int) -> int:
        return write(file, parts[: len(parts) // 2] if state["full"] else parts, start)

    with patch.object(predictions, "append", inserting), patch("services.write_ahead_log.os.pwritev", writing):
        yield state
