"""Data sets: labelled images, split into train, validation and test, stored once under a fingerprint of their content."""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from io import BufferedWriter
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from digits.data.bucket import Bucket
from digits.images import PIXELS, Images, Split

log = logging.getLogger("digits.data.datasets")
TEST_SHARE = 0.15  # of a source that comes without a test part
VALIDATION_SHARE = 0.15  # of a source that comes without a test part
VALIDATION_SHARE_OF_TRAIN = 1 / 6  # of a training part that comes with a test part: 10,000 of MNIST's 60,000
MIN_CLASS_SHARE = 0.02  # a fifth of an even share; the rarest digit of MNIST has 0.089
# MemoryError: a damaged header may ask for any size. RuntimeError: an encrypted zip. SyntaxError: a damaged npy header.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, MemoryError, RuntimeError, SyntaxError)
Storage = Path | Bucket  # where data sets are stored: a folder of this machine, with or without a bucket behind it


class BadData(ValueError):
    """The refusal of a source: one sentence that names the file, the row and the value."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Immutable training, validation and test images, named by a fingerprint of their content."""

    train: Split
    validation: Split
    test: Split
    source: str  # "mnist", "bundled", or the name of the file or folder
    checksum: str | None = None  # SHA-256 of the file or folder it was read from
    overlap_removed: int = 0  # images left out of train and validation because they stand in test
    parent: str | None = None  # fingerprint of the data set this one was made from by resplit or extend

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over the names, shapes and bytes of the six arrays."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.shape}\n".encode())
            digest.update(array.data)
        return digest.hexdigest()[:16]

    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def arrays(self) -> dict[str, NDArray[np.uint8]]:
        return {
            f"{name}_{kind}": array
            for name, split in self.splits().items()
            for kind, array in (("images", split.images), ("labels", split.labels))
        }


# Splitting


def divide(source: str, train: Split, test: Split | None, seed: int) -> Dataset:
    """A data set of one or two parts; images that stand in test are taken out of train before validation is drawn."""
    for part in (train, test):
        if part is not None:
            _check_balance(source, part)
    share = VALIDATION_SHARE_OF_TRAIN
    if test is None:
        train, test = _draw(_shuffle(train, seed), TEST_SHARE, seed)
        share = VALIDATION_SHARE / (1 - TEST_SHARE)
    train, removed = _without(source, train, test)
    _check_balance(source, train)
    return _complete(Dataset(*_draw(train, share, seed), test, source, overlap_removed=removed))


def resplit(dataset: Dataset, validation_fraction: float, seed: int) -> Dataset:
    """The same images with another validation part: `validation_fraction` of train and validation together, stratified.

    Raises BadData where a digit would be missing from a part.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"expected a validation fraction between 0 and 1, got {validation_fraction}")
    train, validation = _draw(join(dataset.train, dataset.validation), validation_fraction, seed)
    return _complete(replace(dataset, train=train, validation=validation, parent=dataset.fingerprint))


def extend(dataset: Dataset, more: Split, *, validation_fraction: float, seed: int) -> Dataset:
    """The data set with new labelled images in train and validation; itself where `more` brings nothing new.

    Left out: images that stand in test (counted in `overlap_removed`), and those already there with the same label, so
    that extending twice by the same images is extending once. The side is drawn from each image's own bytes, about
    `validation_fraction` of them to validation: an image that comes again later lands on the same side.
    """
    in_test = set(_keys(dataset.test))
    known = {pair for split in (dataset.train, dataset.validation) for pair in _pairs(split)}
    to_train: list[int] = []
    to_validation: list[int] = []
    removed = 0
    for row, (key, label) in enumerate(_pairs(more)):
        if key in in_test:
            removed += 1
        elif (key, label) not in known:
            known.add((key, label))
            (to_validation if _hash_share(key, seed) < validation_fraction else to_train).append(row)
    grown = replace(
        dataset,
        train=_grow(dataset.train, more, to_train),
        validation=_grow(dataset.validation, more, to_validation),
        overlap_removed=dataset.overlap_removed + removed,
    )
    return replace(grown, parent=dataset.fingerprint) if to_train or to_validation else grown


def digests(images: Images) -> NDArray[np.uint64]:
    """A fingerprint of each image, (n,): the same for the same pixels, another for others but in one of 10^9 data sets."""
    keys = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(keys), "<u8")


def join(*splits: Split) -> Split:
    """The images of all, in this order."""
    return Split(np.concatenate([split.images for split in splits]), np.concatenate([split.labels for split in splits]))


def _draw(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """What stays and what is drawn, both in the order of `split`: `round(share * n)` images, each digit in proportion.

    Odd images go to the largest remainders; of a digit with two images or more, at least one is drawn.
    """
    counts = np.array(split.counts())
    exact = counts * (round(share * len(split)) / len(split))
    wanted = np.maximum(np.floor(exact).astype(int), np.minimum(counts // 2, 1))
    missing = max(round(share * len(split)) - int(wanted.sum()), 0)
    wanted[np.argsort(wanted - exact, kind="stable")[:missing]] += 1
    order = np.random.default_rng(seed).permutation(len(split))
    drawn = np.zeros(len(split), dtype=bool)
    for digit, number in enumerate(wanted):
        drawn[order[split.labels[order] == digit][:number]] = True
    return _pick(split, ~drawn), _pick(split, drawn)


def _without(source: str, split: Split, other: Split) -> tuple[Split, int]:
    """The images of `split` that do not stand in `other`, and how many did."""
    in_other = set(_keys(other))
    keep = np.array([key not in in_other for key in _keys(split)])
    removed = len(split) - int(keep.sum())
    if removed == len(split):
        raise BadData(
            f"{source}: all {removed} training images stand in the test part too; nothing is left to train on"
        )
    if removed:
        log.warning("%s: %d training images stand in the test part too and were left out", source, removed)
    return (_pick(split, keep) if removed else split), removed


def _complete(dataset: Dataset) -> Dataset:
    for name, split in dataset.splits().items():
        if 0 in split.counts():
            digit = split.counts().index(0)
            raise BadData(f"{dataset.source}: digit {digit} has too few images, none is left for the {name} part")
    return dataset


def _keys(split: Split) -> list[bytes]:
    """Each image as bytes, to be compared as a whole."""
    content = split.images.tobytes()
    return [content[start : start + PIXELS] for start in range(0, len(content), PIXELS)]


def _pairs(split: Split) -> list[tuple[bytes, int]]:
    return list(zip(_keys(split), split.labels.tolist(), strict=True))


def _hash_share(key: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the image and the seed alone."""
    digest = hashlib.sha256(f"{seed} ".encode() + key).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _pick(split: Split, rows: NDArray[Any]) -> Split:
    return Split(split.images[rows], split.labels[rows])


def _grow(split: Split, more: Split, rows: list[int]) -> Split:
    return join(split, _pick(more, np.array(rows))) if rows else split


def _shuffle(split: Split, seed: int) -> Split:
    return _pick(split, np.random.default_rng(seed).permutation(len(split)))


def _check_balance(file: str, split: Split) -> None:
    counts = split.counts()
    digit = int(np.argmin(counts))
    if counts[digit] < MIN_CLASS_SHARE * len(split):
        raise BadData(
            f"{file}: digit {digit} has {counts[digit]} of {len(split)} images, "
            f"expected at least {MIN_CLASS_SHARE:.0%} of each digit"
        )


# Files


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what a damaged or unreadable file raises into a refusal that names it."""
    try:
        yield
    except BadData:
        raise
    except (*UNREADABLE, zlib.error, zipfile.BadZipFile) as error:
        raise BadData(f"{path.name} cannot be read, it is damaged or cut off: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


# The store: one folder per data set, named by its fingerprint


def describe(dataset: Dataset) -> dict[str, Any]:
    """What the manifest tells: where the images come from, and how many there are per split and digit."""
    splits = dataset.splits()
    pool = _pairs(dataset.train) + _pairs(dataset.validation)
    images = len({key for key, _ in pool})
    return {
        "fingerprint": dataset.fingerprint,
        "source": dataset.source,
        "checksum": dataset.checksum,
        "parent": dataset.parent,
        "images": {name: len(split) for name, split in splits.items()},
        "images_per_digit": {name: split.counts() for name, split in splits.items()},
        "smallest_class_share": {name: round(min(split.counts()) / len(split), 4) for name, split in splits.items()},
        "duplicates": len(pool) - images,  # of train and validation together
        "contradictions": len(set(pool)) - images,  # the same image under another label
        "overlap_removed": dataset.overlap_removed,
    }


def save(dataset: Dataset, storage: Storage) -> Path:
    """Stores the data set as `<fingerprint>/` (`arrays.npz`, `manifest.json`), once; returns that path on this machine."""
    target = _write(dataset, _folder(storage))
    if isinstance(storage, Bucket):
        storage.upload(target)
    return target


def _write(dataset: Dataset, folder: Path) -> Path:
    """Written beside and renamed, so that it appears whole or not at all; remains of a killed run are swept away."""
    target = folder / dataset.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if target.exists():
            return target
        for remains in folder.glob(".part-*"):
            shutil.rmtree(remains)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
            about = describe(dataset) | {"created_at": datetime.now(UTC).isoformat(timespec="seconds")}
            whole = Path(part, dataset.fingerprint)
            whole.mkdir()
            with (whole / "arrays.npz").open("wb") as file:
                np.savez(file, **dataset.arrays())  # type: ignore[arg-type]  # mypy takes ** for allow_pickle too
                _flush(file)
            write_atomically(whole / "manifest.json", json.dumps(about, indent=2).encode())
            whole.rename(target)
    counts = ", ".join(f"{count:,} {name}" for name, count in about["images"].items())
    log.info("stored data set %s (%s): %s images", dataset.fingerprint, dataset.source, counts)
    return target


def has(storage: Storage, fingerprint: str) -> bool:
    """Whether the data set is stored there; one that only the bucket has is fetched and verified."""
    path = _folder(storage) / _checked(fingerprint)
    if not path.is_dir() and isinstance(storage, Bucket):
        _fetch(storage, fingerprint)
    return path.is_dir()


def _fetch(bucket: Bucket, fingerprint: str) -> None:
    bucket.folder.mkdir(parents=True, exist_ok=True)
    with _locked(bucket.folder), tempfile.TemporaryDirectory(prefix=".part-", dir=bucket.folder) as part:
        whole, target = Path(part, fingerprint), bucket.folder / fingerprint
        if target.exists() or not bucket.download(fingerprint, whole):  # another process may have been quicker
            return
        try:
            load(Path(part), fingerprint)
        except BadData as error:
            raise BadData(
                f"the data set {fingerprint} in {bucket.url} is not what was stored there: {error}"
            ) from error
        whole.rename(target)
    log.info("fetched data set %s from %s", fingerprint, bucket.url)


def manifest(storage: Storage, fingerprint: str) -> dict[str, Any]:
    """`describe` of a stored data set, and when it was stored (`created_at`, UTC); raises BadData if there is none."""
    _check_there(storage, fingerprint)
    path = _folder(storage) / fingerprint / "manifest.json"
    with reading(path):
        return json.loads(path.read_bytes())


def load(storage: Storage, fingerprint: str) -> Dataset:
    """The data set stored under the fingerprint; raises BadData if there is none or its content is not what it was."""
    about = manifest(storage, fingerprint)
    path = _folder(storage) / fingerprint
    with reading(path / "arrays.npz"):
        with (path / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = ("train", "validation", "test")
            train, validation, test = (Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in names)
        origin = {name: about[name] for name in ("source", "checksum", "overlap_removed", "parent")}
        dataset = Dataset(train, validation, test, **origin)
    if dataset.fingerprint != fingerprint:
        raise BadData(
            f"the data set {path} was changed after it was stored: its content now has the fingerprint "
            f"{dataset.fingerprint}; remove the folder and ingest it again"
        )
    return dataset


def set_current(storage: Storage, fingerprint: str) -> None:
    """Makes a stored data set the one that the next retraining starts from."""
    _check_there(storage, fingerprint)
    if isinstance(storage, Bucket):
        storage.upload(storage.folder / fingerprint)
        storage.point(fingerprint)
    write_atomically(_folder(storage) / "current", fingerprint.encode())


def current(storage: Storage) -> str | None:
    """The fingerprint of the data set that the next retraining starts from; None before the first."""
    if isinstance(storage, Bucket):
        pointed = storage.pointed()
        if pointed is None and (before := current(storage.folder)):  # this machine worked alone until now
            set_current(storage, before)
            return before
        return pointed and _checked(pointed)
    pointer = storage / "current"
    return _checked(pointer.read_text().strip()) if pointer.exists() else None


def _folder(storage: Storage) -> Path:
    return storage.folder if isinstance(storage, Bucket) else storage


def _check_there(storage: Storage, fingerprint: str) -> None:
    if not has(storage, fingerprint):
        raise BadData(f"there is no data set {fingerprint} in {storage}; ingest it again")


def _checked(fingerprint: str) -> str:
    if not re.fullmatch("[0-9a-f]{16}", fingerprint):
        raise BadData(f"{fingerprint!r} is no fingerprint of a data set, expected 16 hex digits")
    return fingerprint


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the kernel lets go of the lock when its process dies."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(target: Path, content: bytes) -> None:
    """The whole content or none: written beside the target, then renamed."""
    part = target.with_name(f".{target.name}-{uuid4().hex}")
    try:
        with part.open("wb") as file:
            file.write(content)
            _flush(file)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _flush(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())
