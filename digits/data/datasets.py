"""Data sets: labelled images, split into train, validation and test, stored once under a fingerprint of their content."""

import fcntl
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits import files
from digits.data import bucket, splitting
from digits.errors import READ_ERRORS, first_line
from digits.images import NO_DIGIT, Images, Split
from digits.settings import Bucket

log = logging.getLogger("digits.data.datasets")

# Of the training part of a source with a test part: 10,000 of MNIST's 60,000.
VALIDATION_SHARE_OF_TRAIN = 1 / 6
# A fifth of an even share; the rarest digit of MNIST has 0.089.
MIN_CLASS_SHARE = 0.02
# The fields of a data set beside its arrays.
FACTS = ("source", "origin", "overlap_removed", "parent", "near_duplicates")
PARTS = ("train", "validation", "test")
DatasetStore = Path | Bucket  # a folder of this machine, with or without a bucket that shares it


class BadData(ValueError):
    """Refused data; the message names the file, the row and the value."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Immutable training, validation and test images, named by a fingerprint of their content."""

    train: Split
    validation: Split
    test: Split
    source: str  # "mnist", "bundled", or the name of the file or folder
    overlap_removed: int = 0  # images left out of train and validation because they are also in test
    parent: str | None = None  # fingerprint of the data set from which resplit or extend made this one
    near_duplicates: int | None = None  # test images that nearly equal another one, counted when the source was read
    origin: str | None = None  # absolute path or URL that the source was read from; None for the bundled digits

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


def divide(
    source: str, train: Split, test: Split | None = None, writers: NDArray[Any] | None = None, *, seed: int
) -> Dataset:
    """A data set of one or two parts; images that are also in test are left out of train and validation and counted.

    A single part is divided by the content of its images, or by their `writers` (n,). Where there is a test part,
    validation is drawn from the other, stratified.
    """
    for part in (train, test):
        if part is not None:
            _check_balance(source, part)
    if test is None:
        return _divide_by_content(source, train, writers, seed)
    train, removed = _without(source, train, test)
    _check_balance(source, train)
    train, validation = splitting.draw(train, VALIDATION_SHARE_OF_TRAIN, seed)
    return _require_all_digits(Dataset(train, validation, test, source, overlap_removed=removed))


def _divide_by_content(source: str, split: Split, writers: NDArray[Any] | None, seed: int) -> Dataset:
    rows = splitting.by_content(split, writers, seed)
    for name, own in zip(PARTS, rows, strict=True):
        _require_digits(source, name, np.bincount(split.labels[own], minlength=10).tolist())
    train, validation, test = (splitting.pick(split, own) for own in rows)
    if writers is None:
        return Dataset(train, validation, test, source)
    # Different writers may have identical images.
    (train, from_train), (validation, removed) = (_without(source, part, test) for part in (train, validation))
    return _require_all_digits(Dataset(train, validation, test, source, overlap_removed=from_train + removed))


def _without(source: str, split: Split, test: Split) -> tuple[Split, int]:
    """The images that are not in test, and how many were left out; raises BadData where none remains."""
    keep = ~np.isin(digests(split.images), digests(test.images))
    removed = int((~keep).sum())
    if removed == len(split):
        raise BadData(f"{source}: all {removed} training images are also in the test part; no training image remains")
    if removed:
        log.warning("%s: left out %d training images that are also in the test part", source, removed)
    return splitting.pick(split, keep), removed


def resplit(dataset: Dataset, validation_fraction: float, seed: int) -> Dataset:
    """The same images with another validation part: `validation_fraction` of train and validation together, stratified.

    Raises BadData where a part would lack a digit.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"expected a validation fraction between 0 and 1, got {validation_fraction}")
    train, validation = splitting.draw(join(dataset.train, dataset.validation), validation_fraction, seed)
    return _require_all_digits(replace(dataset, train=train, validation=validation, parent=dataset.fingerprint))


def extend(dataset: Dataset, more: Split, *, validation_fraction: float, seed: int) -> Dataset:
    """The data set with new labelled images in train and validation.

    Left out are images that are in test (counted in `overlap_removed`) and those already there with the same label, so that
    extending twice by the same images equals extending once. A hash of each image's bytes assigns about
    `validation_fraction` of them to validation: an image that is added again later is assigned to the same part.
    """
    in_test = np.isin(digests(more.images), digests(dataset.test.images))
    known = {*pairs(dataset.train), *pairs(dataset.validation)}
    rows: dict[str, list[int]] = {"train": [], "validation": []}
    hashes = splitting.hash_fractions((image.tobytes() for image in more.images), seed)
    for row, pair in enumerate(pairs(more)):
        if not in_test[row] and pair not in known:
            known.add(pair)
            rows["validation" if hashes[row] < validation_fraction else "train"].append(row)
    splits = dataset.splits()
    grown: dict[str, Any] = {name: join(splits[name], splitting.pick(more, new)) for name, new in rows.items() if new}
    parent = dataset.fingerprint if grown else dataset.parent
    return replace(dataset, **grown, overlap_removed=dataset.overlap_removed + int(in_test.sum()), parent=parent)


def correct(dataset: Dataset, corrections: Mapping[bytes, int]) -> Dataset:
    """The data set with these labels by image in train and validation, without the images that show NO_DIGIT.

    The test part stays as it is: versions are compared on it.
    """
    corrected: dict[str, Any] = {}
    for name in ("train", "validation"):
        split = dataset.splits()[name]
        rows = zip(split.images, split.labels.tolist(), strict=True)
        given = np.array([corrections.get(image.tobytes(), label) for image, label in rows], np.uint8)
        if (given != split.labels).any():
            kept = given != NO_DIGIT
            corrected[name] = Split(split.images[kept], given[kept])
    return replace(dataset, **corrected, parent=dataset.fingerprint) if corrected else dataset


def digests(images: Images) -> NDArray[np.uint64]:
    """A 64-bit hash of each image, (n,); two different images collide in one of 10^9 data sets."""
    keys = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(keys), "<u8")


def pairs(split: Split) -> list[tuple[int, int]]:
    """The digest of each image with its label."""
    return list(zip(digests(split.images).tolist(), split.labels.tolist(), strict=True))


def join(*splits: Split) -> Split:
    """The images of all splits, in this order."""
    return Split(np.concatenate([split.images for split in splits]), np.concatenate([split.labels for split in splits]))


def _require_all_digits(dataset: Dataset) -> Dataset:
    for name, split in dataset.splits().items():
        _require_digits(dataset.source, name, split.counts())
    return dataset


def _require_digits(source: str, part: str, counts: list[int]) -> None:
    if 0 in counts:
        digit = counts.index(0)
        raise BadData(
            f"{source}: digit {digit} has too few images or writers, none is left for the {part} part; add more of it"
        )


def _check_balance(source: str, split: Split) -> None:
    count, digit = min((count, digit) for digit, count in enumerate(split.counts()))
    if count < MIN_CLASS_SHARE * len(split):
        expected = f"expected at least {MIN_CLASS_SHARE:.0%} of each digit"
        raise BadData(f"{source}: digit {digit} has {count} of {len(split)} images, {expected}")


# Storage: one folder per data set, named by its fingerprint


def describe(dataset: Dataset) -> dict[str, Any]:
    """The manifest: where the images come from, and how many there are per split and digit."""
    splits = dataset.splits()
    return {
        "fingerprint": dataset.fingerprint,
        **{name: getattr(dataset, name) for name in FACTS},
        "images": {name: len(split) for name, split in splits.items()},
        "images_per_digit": {name: split.counts() for name, split in splits.items()},
    }


def save(dataset: Dataset, storage: DatasetStore) -> Path:
    """Store the data set once as `<fingerprint>/` (`arrays.npz`, `manifest.json`). Returns that folder on this machine."""
    target = _folder(storage) / dataset.fingerprint
    with _locked(target.parent):
        if not target.exists():
            # A killed process leaves these behind.
            for unfinished in target.parent.glob(".*.tmp/"):
                shutil.rmtree(unfinished)
            created = {"created_at": datetime.now(UTC).isoformat(timespec="seconds")}
            with files.replacing(target) as part:
                part.mkdir()
                np.savez(part / "arrays.npz", **dataset.arrays())  # type: ignore[arg-type]  # taken for allow_pickle, too
                (part / "manifest.json").write_text(json.dumps(describe(dataset) | created, indent=2))
            counts = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits().items())
            log.info("stored data set %s (%s): %s images", target.name, dataset.source, counts)
    if isinstance(storage, Bucket):
        bucket.upload(storage, target)
    return target


def manifest(storage: DatasetStore, fingerprint: str) -> dict[str, Any]:
    """`describe` of a stored data set, when it was stored (`created_at`, UTC) and where (`location`); raises BadData if there is none."""
    path = _stored(storage, fingerprint)
    with reading(path / "manifest.json") as file:
        described: dict[str, Any] = json.loads(file.read_bytes())
    folder = f"{storage.url}/{fingerprint}" if isinstance(storage, Bucket) else path
    return described | {"location": f"{folder}/arrays.npz"}


def lineage(storage: DatasetStore, fingerprint: str) -> Iterator[str]:
    """The fingerprints of a data set and of those from which it grew by the inbox and by feedback, newest first, as far as known."""
    found: list[str] = []
    with suppress(BadData):
        # A split that is drawn again may name itself.
        while fingerprint and fingerprint not in found:
            found.append(fingerprint)
            yield fingerprint
            fingerprint = manifest(storage, fingerprint).get("parent") or ""


def load(storage: DatasetStore, fingerprint: str) -> Dataset:
    """The data set stored under the fingerprint; raises BadData if there is none or its content was changed."""
    return _read(_stored(storage, fingerprint), fingerprint)


def _stored(storage: DatasetStore, fingerprint: str) -> Path:
    """The folder of a stored data set, downloaded where only the bucket has it; raises BadData if there is none."""
    if not re.fullmatch("[0-9a-f]{16}", fingerprint):
        raise BadData(f"{fingerprint!r} is no fingerprint of a data set, expected 16 hex digits")
    path = _folder(storage) / fingerprint
    if isinstance(storage, Bucket) and not path.is_dir():
        _download(storage, path)
    if not path.is_dir():
        raise BadData(f"there is no data set {fingerprint} in {storage}; ingest it again")
    return path


def _download(storage: Bucket, target: Path) -> None:
    with _locked(storage.folder), files.replacing(target) as part:
        # Another process may have been faster.
        if target.exists() or not bucket.download(storage, target.name, part):
            return
        try:
            _read(part, target.name)
        except BadData as error:
            changed = f"the data set {target.name} in {storage.url} is not what was stored there"
            raise BadData(f"{changed}: {error}") from error
    log.info("downloaded data set %s from %s", target.name, storage.url)


def _read(path: Path, fingerprint: str) -> Dataset:
    """The data set of a folder, verified by its fingerprint."""
    with reading(path / "manifest.json") as file:
        origin = json.loads(file.read_bytes())
    # Opened here, because NumPy does not close a path that it cannot read.
    with (
        reading(path / "arrays.npz") as archive,
        archive.open("rb") as opened,
        np.load(opened, allow_pickle=False) as arrays,
    ):
        train, validation, test = (Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in PARTS)
        dataset = Dataset(train, validation, test, **{name: origin[name] for name in FACTS if name in origin})
    if dataset.fingerprint != fingerprint:
        changed = f"the data set {path} was changed after it was stored: its fingerprint is now {dataset.fingerprint}"
        raise BadData(f"{changed}; remove the folder and ingest it again")
    return dataset


def set_current(storage: DatasetStore, fingerprint: str) -> None:
    """Make a stored data set the one from which the next retraining starts."""
    path = _stored(storage, fingerprint)
    if isinstance(storage, Bucket):
        bucket.upload(storage, path)
        bucket.set_current(storage, fingerprint)
    files.write_atomically(path.parent / "current", fingerprint.encode())


def current(storage: DatasetStore) -> str | None:
    """The fingerprint of the data set from which the next retraining starts; None before the first."""
    if isinstance(storage, Bucket):
        shared = bucket.current(storage)
        # A machine whose data set was current before it used the bucket shares it.
        if shared is None and (own := current(storage.folder)):
            set_current(storage, own)
            return own
        return shared
    pointer = storage / "current"
    return pointer.read_text().strip() if pointer.exists() else None


def _folder(storage: DatasetStore) -> Path:
    return storage.folder if isinstance(storage, Bucket) else storage


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Admit one writer at a time; the kernel releases the lock when its process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Turn the errors of a damaged or unreadable file into BadData with its name."""
    try:
        yield path
    except BadData:
        raise
    except READ_ERRORS as error:
        raise BadData(f"{path.name} cannot be read, it is damaged or cut off: {first_line(error)}") from error
