"""The inbox: a folder for labelled files; the next retraining ingests each of them once, or rejects it with the reason.

A file stays until the data set with its images is stored and current, and only then moves to `taken/`. After a crash in between
it is read again; `datasets.extend` leaves out images that a data set already holds, so the result is the same data set.

Unusable rows of a file in `taken/` are in quarantine: `rejected/<file>.rows.csv` lists them with their reasons, and
`rejected/<file>.rows.npz` holds their images and labels, and is a labelled file itself. The rows of that list stay out when
`taken/` is read again.
"""

import csv
import io
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digits.data import datasets, row_checks, sources, splitting
from digits.data.datasets import BadData
from digits.data.formats import LIMIT_BYTES, Rows
from digits.errors import first_line
from digits.files import write_atomically
from digits.images import PredictProba, Split

log = logging.getLogger(__name__)

OWN_FOLDERS = ("taken", "rejected")
# Endings of the names that copying programs use until a file is complete.
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")
MAX_NAME_BYTES = 180  # longer names are shortened: file systems allow 255, of which ours for a temporary file take 50
MAX_UNUSABLE_SHARE = 0.1  # of the rows of a file; more of them are no accident
# `compact` on MNIST contradicts 0.14 % of right labels with confidence, 1 % in unseen handwriting, and 72 % of shuffled ones.
MAX_CONTRADICTED_SHARE = 0.2
CONFIRMED = "confirmed"  # in the name of a file, `june.confirmed.csv`, whose labels are not compared with the champion

# Path, bytes, modification time and change time in nanoseconds of every file; of a folder, its name with a slash and its change time.
# Linux sets the change time where a name is given to a file, so that a link which was in its place for a moment is noticed.
Stamp = frozenset[tuple[str, int, int, int]]


class Quarantine(NamedTuple):
    """The unusable rows of a file."""

    reasons: dict[str, str]  # by the name of each row
    labelled: Split | None  # images and labels of those that have them, in the same order at its end


@dataclass(frozen=True)
class InboxBatch:
    """The images of all valid files together, and the fate of each file."""

    labelled: Split | None
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of each valid file or folder at the time of reading
    rejected: dict[str, str] = field(default_factory=dict)  # the reason for each other one
    quarantine: dict[str, Quarantine] = field(default_factory=dict)  # of each valid file that has unusable rows

    @property
    def source(self) -> str:
        """What manifests and messages call the valid files."""
        return ", ".join(map(_printable, self.stamps))


def read_inbox(
    inbox: Path,
    predict_proba: PredictProba | None = None,
    *,
    limit_bytes: int = LIMIT_BYTES,
    settle_seconds: float = 1.0,
) -> InboxBatch:
    """Read every labelled file and folder; valid ones stay where they are, others move to `rejected/`.

    Where `predict_proba` of the champion is given, labels that it contradicts with confidence are unusable, too. Ignored are
    hidden and unfinished names, empty folders, and files that changed within the last `settle_seconds` or while they were read.
    Raises BadData where a folder of the platform is a link.
    """
    _check_own_folders(inbox)
    splits: list[Split] = []
    batch = InboxBatch(None)
    for path in sorted(inbox.iterdir()) if inbox.is_dir() else []:
        if path.name in OWN_FOLDERS or path.name.startswith("."):
            continue
        # before anything is looked at that a link names, which may be the whole file system
        read = _refusal(path, inbox) or _read_file(path, predict_proba, limit_bytes, settle_seconds)
        if isinstance(read, str):
            batch.rejected[path.name] = read
            _reject(path, read)
        elif read is not None:
            usable, quarantine, batch.stamps[path.name] = read
            splits.append(usable)
            if quarantine.reasons:
                batch.quarantine[path.name] = quarantine
    return InboxBatch(datasets.join(*splits) if splits else None, batch.stamps, batch.rejected, batch.quarantine)


def _read_file(
    path: Path, predict_proba: PredictProba | None, limit_bytes: int, settle_seconds: float
) -> tuple[Split, Quarantine, Stamp] | str | None:
    """The usable rows of a file, the others and its stamp, or why it is rejected; None for one that may still be written."""
    read: tuple[Split, Quarantine, Stamp] | str
    stamp = _stamp(path)
    if not _is_settled(path.name, stamp, settle_seconds):
        return None
    try:
        read = *_triage(path.name, sources.read_rows(path, limit_bytes), predict_proba), stamp
    # Whatever is wrong with a file, and whatever error a library has for it, must not end this and all later retrainings.
    except Exception as error:
        read = str(error) if isinstance(error, BadData) else f"{path.name} cannot be read: {first_line(error)}"
    return read if _stamp(path) == stamp else None


def read_taken(inbox: Path, limit_bytes: int = LIMIT_BYTES) -> InboxBatch:
    """What the files in `taken/` brought: all but the rows in quarantine. One that cannot be read any more is left out.

    Raises BadData where a folder of the platform is a link.
    """
    _check_own_folders(inbox)
    splits: list[Split] = []
    batch = InboxBatch(None)
    for path in sorted((inbox / "taken").iterdir()) if (inbox / "taken").is_dir() else []:
        try:
            table = _quarantine_path(inbox, path.name)
            if reason := _refusal(path, inbox) or _refusal(table, inbox):
                raise BadData(reason)
            splits.append(_without_quarantine(sources.read_rows(path, limit_bytes), table))
            batch.stamps[path.name] = _stamp(path)
        # As in the inbox, a single file must not end a retraining.
        except Exception as error:
            log.warning("left out taken/%s: %s", _printable(path.name), _printable(first_line(error)))
    return InboxBatch(datasets.join(*splits) if splits else None, batch.stamps)


def archive(batch: InboxBatch, inbox: Path) -> None:
    """Move the ingested files to `taken/`, and write their unusable rows to `rejected/`.

    A file that has changed since, or cannot be moved, stays for the next retraining, which finds that it knows its images.
    Raises BadData where a folder of the platform is a link.
    """
    _check_own_folders(inbox)
    for name, stamp in batch.stamps.items():
        if _stamp(inbox / name) == stamp:
            with _logged_failure(inbox / name):
                quarantine = batch.quarantine.get(name)
                table = _table(quarantine) if quarantine else None
                target = _target(inbox, name, table)
                # Before the file moves: after a crash in between they are written again, under the same name.
                if quarantine and table:
                    _write(quarantine, table, _quarantine_path(inbox, target.name))
                _move(inbox / name, target)
                log.info(
                    "ingested %s%s",
                    _printable(name),
                    f", but for {_printable(_summary(quarantine))}" if quarantine else "",
                )


def _check_own_folders(inbox: Path) -> None:
    """Raise BadData where one of the platform's own folders is a link: it would write to any place that its user may write to."""
    for folder in [inbox / name for name in OWN_FOLDERS]:
        if folder.is_symlink():
            raise BadData(
                f"{folder} is a link to {os.readlink(folder)}; remove it, the platform creates a folder there"
            )


def _refusal(path: Path, inbox: Path) -> str | None:
    """Why what lies at the path is not even looked at: it is no file or folder, or a link in it leads out of the inbox."""
    name = path.relative_to(inbox).as_posix()
    for link in _links(path):
        if not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(inbox)):
            return f"{name} has a link that leads out of the inbox, {link.name} to {os.readlink(link)}; copy the file"
    if os.path.lexists(path) and not (path.is_file() or path.is_dir()):
        return f"{name} is neither a file nor a folder; remove it or copy a regular file"
    return None


def _links(path: Path) -> Iterator[Path]:
    """The path itself if it is a link, or else all links in the folder."""
    if path.is_symlink():
        yield path
    else:
        walk = os.walk(path)
        files = (Path(folder, name) for folder, folders, names in walk for name in chain(folders, names))
        yield from filter(Path.is_symlink, files)


def _triage(file: str, rows: Rows, predict_proba: PredictProba | None) -> tuple[Split, Quarantine]:
    """The usable rows of a file, and the others; raises BadData where these are too many to be an accident.

    A person has looked at a confirmed file, so it may have any number of them, and no label is compared with the champion.
    """
    split, total, is_confirmed = rows.split, len(rows.split) + len(rows.unreadable), CONFIRMED in file.split(".")
    faults = _faults(split)
    reasons = {**rows.unreadable, **{rows.name(row): reason for row, reason in faults.items()}}
    if len(faults) == len(split) or (len(reasons) > MAX_UNUSABLE_SHARE * total and not is_confirmed):
        first = next(f"{name} {reason}" for name, reason in reasons.items())
        limit = f"a file may have {MAX_UNUSABLE_SHARE:.0%} of them"
        raise BadData(f"{file}: {len(reasons):,} of {total:,} rows are unusable, {limit}; the first: {first}")
    if predict_proba and not is_confirmed:
        contradicted = row_checks.contradicted_labels(split, predict_proba)
        _check_contradicted(file, len(contradicted), len(split))
        faults = contradicted | faults
    bad = sorted(faults)
    reasons = {**rows.unreadable, **{rows.name(row): faults[row] for row in bad}}
    good = np.setdiff1d(np.arange(len(split)), bad)
    return splitting.pick(split, good), Quarantine(reasons, splitting.pick(split, bad) if bad else None)


def _faults(split: Split) -> dict[int, str]:
    return row_checks.contradictory_labels(split) | row_checks.image_faults(split.images)


def _check_contradicted(file: str, contradicted: int, total: int) -> None:
    if contradicted <= MAX_CONTRADICTED_SHARE * total:
        return
    stem, dot, suffix = file.partition(".")
    raise BadData(
        f"{file}: the champion contradicts {contradicted:,} of {total:,} labels with a probability of "
        f"{row_checks.CONFIDENT:.0%} or more, so the labels are shuffled or wrong, or the images are no digits; "
        f"if they are right, put the file into the inbox as {stem}.{CONFIRMED}{dot}{suffix}"
    )


def _summary(quarantine: Quarantine) -> str:
    """The number of unusable rows, and the reason of the first."""
    name, reason = next(iter(quarantine.reasons.items()))
    return f"{len(quarantine.reasons):,} unusable rows that are now in rejected/, the first: {name} {reason}"


def _quarantine_path(inbox: Path, name: str) -> Path:
    """The list of the quarantined rows; their images are beside it, as .npz."""
    return inbox / "rejected" / f"{name}.rows.csv"


def _table(quarantine: Quarantine) -> bytes:
    """The name, label and reason of every row as CSV."""
    labels = [] if quarantine.labelled is None else quarantine.labelled.labels.tolist()
    labels = [""] * (len(quarantine.reasons) - len(labels)) + labels
    table = io.StringIO()
    rows = zip(quarantine.reasons.items(), labels, strict=True)
    csv.writer(table).writerows([("row", "label", "reason"), *((name, label, why) for (name, why), label in rows)])
    return table.getvalue().encode(errors="surrogateescape")


def _write(quarantine: Quarantine, table: bytes, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, table)
    if quarantine.labelled is not None:
        arrays = io.BytesIO()
        np.savez(arrays, images=quarantine.labelled.images, labels=quarantine.labelled.labels)
        write_atomically(path.with_suffix(".npz"), arrays.getvalue())


def _without_quarantine(rows: Rows, path: Path) -> Split:
    """The images but for unusable rows and those that a table lists; raises BadData where none remains."""
    listed, faults = set(), _faults(rows.split)
    if path.exists():
        with path.open(newline="", errors="surrogateescape") as file:
            listed = {line["row"] for line in csv.DictReader(file)}
    keep = [row for row in range(len(rows.split)) if row not in faults and rows.name(row) not in listed]
    if not keep:
        raise BadData(f"all its rows are in {path.name}")
    return splitting.pick(rows.split, keep)


def _stamp(path: Path) -> Stamp:
    """Empty for an empty folder and a missing file; what may not be listed or looked at counts as an old file of no bytes."""
    files: set[tuple[str, int, int, int]] = set()
    folders: set[tuple[str, int, int, int]] = set()

    def add_unreadable(error: OSError) -> None:
        if isinstance(error, PermissionError):
            files.add((str(error.filename), 0, 0, 0))

    walk = os.walk(path, onerror=add_unreadable)
    for one in chain([path], (Path(folder, name) for folder, below, names in walk for name in chain(below, names))):
        name = one.relative_to(path.parent).as_posix()
        try:
            status = one.stat()
            changed = max(status.st_ctime_ns, one.lstat().st_ctime_ns)
        except OSError as error:  # also where its writer has renamed it meanwhile
            add_unreadable(error)
        else:
            if stat.S_ISREG(status.st_mode):
                files.add((name, status.st_size, status.st_mtime_ns, changed))
            elif stat.S_ISDIR(status.st_mode):
                folders.add((f"{name}/", 0, 0, changed))
    return frozenset(files | folders if files else ())


def _is_settled(name: str, stamp: Stamp, settle_seconds: float) -> bool:
    """Whether no file in it is hidden or being written. A time in the future means a wrong clock, not a file being written."""
    names = [name, *(file for file, *_ in stamp)]
    if not stamp or name.startswith(".") or any(name.lower().endswith(UNFINISHED) for name in names):
        return False
    latest = max(modified_ns for _, _, modified_ns, _ in stamp) / 1e9
    return abs(time.time() - latest) >= settle_seconds


def _reject(path: Path, reason: str) -> None:
    """Move a file to `rejected/`, its reason first: after a crash in between the file is rejected again."""
    with _logged_failure(path):
        target = next(one for one in _targets(path.parent / "rejected", path.name) if not os.path.lexists(one))
        note = target.with_name(f"{target.name}.reason.txt")
        # Not through a link, where somebody else has written to the folder.
        note.unlink(missing_ok=True)
        with note.open("x") as file:
            file.write(f"{_printable(reason)}\n")
        _move(path, target)
    log.warning("rejected %s: %s", _printable(path.name), _printable(reason))


@contextmanager
def _logged_failure(path: Path) -> Iterator[None]:
    """Log an error of the file system in place of raising it: the other files must still be moved."""
    try:
        yield
    except OSError as error:
        problem = "stays in the inbox and is read again each time, because it cannot be moved"
        log.error("%s %s: %s", _printable(path.name), problem, _printable(first_line(error)))


def _printable(text: str) -> str:
    """On one line, with escapes for control characters and for the bytes of a file name that are not UTF-8, Python's surrogates."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _move(path: Path, target: Path) -> None:
    if path.is_symlink():
        # A relative link would name another file from there.
        target.symlink_to(os.path.realpath(path))
        path.unlink()
    else:
        path.rename(target)


def _target(inbox: Path, name: str, table: bytes | None) -> Path:
    """The first path in `taken/` that is unused and has no other quarantine than this one: that of a file which was removed."""
    for target in _targets(inbox / "taken", name):
        listed = _quarantine_path(inbox, target.name)
        if not os.path.lexists(target) and (not listed.exists() or (listed.is_file() and listed.read_bytes() == table)):
            return target
    raise AssertionError("the names never end")


def _targets(folder: Path, name: str) -> Iterator[Path]:
    """The paths that a file may have in the folder: `june.csv`, `june-2.csv` and so on."""
    folder.mkdir(exist_ok=True)
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f"{name[:20]}...{name[-20:]}"
    stem, dot, suffix = name.partition(".")
    yield folder / name
    yield from (folder / f"{stem}-{number}{dot}{suffix}" for number in count(2))
